#!/bin/sh
# entrypoint.sh ADDRESSES OPTIONS...: further addresses, comma-separated, then the program's options.
set -eu
for address in $(echo "$1" | tr , ' '); do
  ip address replace "$address/32" dev eth0
done
shift
exec python3 -m lab.cloudflare.edge "$@"
