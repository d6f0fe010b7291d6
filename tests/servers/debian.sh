#!/usr/bin/env bash
# Makes a small Debian 12 with systemd in a folder, which tests of the package boot; prints the folder.
#
# Nothing when it is there already. As root, with debootstrap and systemd-container; a test mounts something over it and changes nothing in it.
set -euo pipefail
cache=${FERRULE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ferrule-tests}
folder=$cache/debian-12
mkdir -p "$cache"
exec 9>"$cache/debian-12.lock"
flock 9
if [ ! -e "$folder/.complete" ]; then
  rm -rf "$folder"
  # The mirror that this machine is set up for; not each machine has both files.
  mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null | head -n 1 || true)
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus bookworm "$folder" ${mirror:+"$mirror"} >"$cache/debian-12.log" 2>&1 || {
    tail -n 20 "$cache/debian-12.log" >&2; exit 1; }
  rm -rf "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/*
  touch "$folder/.complete"
fi
echo "$folder"
