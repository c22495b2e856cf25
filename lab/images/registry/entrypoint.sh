set -eu
docker-registry serve /etc/docker/registry/plain.yml &
exec docker-registry serve /etc/docker/registry/tls.yml
