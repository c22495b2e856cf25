#!/bin/sh
# As upstream's: options alone mean haproxy, and haproxy runs as master with its workers in the foreground.
set -e
if [ "${1#-}" != "$1" ]; then set -- haproxy "$@"; fi
if [ "$1" = haproxy ]; then shift; set -- haproxy -W -db "$@"; fi
exec "$@"
