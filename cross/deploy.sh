#!/usr/bin/env bash
# Copies ferrule-edge to a Debian machine (a Raspberry Pi), installs and starts it, and checks that it serves.
#
#   cross/deploy.sh USER@HOST [--config DIR] [--deb FILE]
#
#   --config DIR   a folder that is put over /etc/ferrule there: edge.toml, rules/, secrets/ (which root alone can read afterwards). It is
#                  checked by the new program before the service has it
#   --deb FILE     this package, instead of the newest one in dist/ for the machine's architecture (make cross)
#
# USER may use sudo without being asked, or is root. SSH="ssh -p 2222" and SCP="scp -P 2222" take the place of the two programs.
set -euo pipefail

die() { echo "deploy.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }

host='' config='' deb=''
while [ $# -gt 0 ]; do
  case $1 in
  --config) config=${2:?--config needs a folder}; shift ;;
  --deb) deb=${2:?--deb needs a file}; shift ;;
  -*) usage ;;
  *) [ -z "$host" ] || usage; host=$1 ;;
  esac
  shift
done
[ -n "$host" ] || usage
[ -z "$config" ] || [ -f "$config/edge.toml" ] || die "$config has no edge.toml"
read -r -a ssh <<<"${SSH:-ssh}"
read -r -a scp <<<"${SCP:-scp -q}"

# One word a line there, whatever stands in a name here.
on() { "${ssh[@]}" "$host" "$1"; }

arch=$(on 'dpkg --print-architecture') || die "$host cannot be reached, or is no Debian (OpenWrt: see cross/README.md)"
if [ -z "$deb" ]; then
  dist=$(cd "$(dirname "$0")/.." && pwd)/dist
  deb=$(find "$dist" -maxdepth 1 -name "ferrule-edge_*_$arch.deb" -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -n 1 | cut -d ' ' -f 2-)
  [ -n "$deb" ] || die "no package for $arch in $dist; type: make cross"
fi
[ -f "$deb" ] || die "$deb is not there"

# shellcheck disable=SC2016 # all of it is for the other side
there=$(on 'd=$(mktemp -d) && echo "$d"')
[ -n "$there" ] || die "no temporary folder on $host"
trap 'on "rm -rf $there" || true' EXIT
echo "copying $(basename "$deb") to $host"
"${scp[@]}" "$deb" "$host:$there/ferrule-edge.deb"
[ -z "$config" ] || "${scp[@]}" -r "$config" "$host:$there/config"

on "set -e
as_root() { if [ \"\$(id -u)\" = 0 ]; then \"\$@\"; else sudo -n \"\$@\"; fi; }
as_root env DEBIAN_FRONTEND=noninteractive dpkg --force-confold -i $there/ferrule-edge.deb
if [ -d $there/config ]; then
  # The passwords are not yet where the service will see them.
  cp -R $there/config $there/check
  sed -i 's#/run/credentials/ferrule-edge.service/secrets_#secrets/#' $there/check/edge.toml
  /usr/bin/ferrule-edge check --config $there/check/edge.toml
  as_root cp -R $there/config/. /etc/ferrule/
  as_root chown -R root:root /etc/ferrule
  as_root chmod -R u=rwX,go=rX /etc/ferrule
  as_root mkdir -p /etc/ferrule/secrets
  as_root chmod -R go= /etc/ferrule/secrets
fi
as_root systemctl enable --quiet ferrule-edge
as_root systemctl restart ferrule-edge" || die "the installation failed; what the service says: ssh $host journalctl -u ferrule-edge"

# Type=notify: a restart that succeeded means that it serves. Whether it still does, it says itself.
on "set -e
if [ \"\$(id -u)\" = 0 ]; then sudo=; else sudo='sudo -n'; fi
systemctl is-active ferrule-edge
\$sudo /usr/bin/ferrule-edge status --config /etc/ferrule/edge.toml" || die "it does not serve; look: ssh $host journalctl -u ferrule-edge"
