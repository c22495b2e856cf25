#!/bin/sh
# Runs at every boot of a lab host, before ssh and docker: the machine's side of what an installer or a cloud provider
# does for a real host. No role knows of it.
set -eu

# The installer makes the host keys and puts in the owner's public key.
ssh-keygen -A >/dev/null
install -d -o ops -g ops -m 0700 /home/ops/.ssh
install -o ops -g ops -m 0600 /lab/authorized_keys /home/ops/.ssh/authorized_keys

# The lab's certificate authority stands for the public ones.
if ! cmp -s /lab/ca.crt /usr/local/share/ca-certificates/lab-ca.crt; then
  cp /lab/ca.crt /usr/local/share/ca-certificates/lab-ca.crt
  update-ca-certificates >/dev/null
fi

# With version 1 of the control groups the host shares the machine's tree. Nested containers then go below the host, so
# that pausing or killing the host reaches them too.
group=$(sed -n 's/.*:memory:\(\/.*\)\/init\.scope$/\1/p; s/.*:memory:\(\/docker\/[0-9a-f]*\)$/\1/p' /proc/1/cgroup | head -n 1)
if [ -n "$group" ]; then
  printf 'DOCKER_OPTS="--cgroup-parent=%s/nested"\n' "$group" >/etc/default/docker
fi
