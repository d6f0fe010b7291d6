#!/usr/bin/env bash
# Makes Debian packages of what `make cross` has built: dist/ferrule-edge_VERSION_ARCH.deb.
#
#   cross/package.sh [ARCH...]      arm64, armhf, amd64; without one: all whose binary is in dist/
#
# armhf holds the ARMv6 file: Raspberry Pi OS calls its Pi Zero armhf, too. VERSION=0.2.0 overrides Cargo.toml's and DIST the folder of the
# packages (tests of an upgrade).
# Needs dpkg-deb and nothing else; the files inside are root's whoever runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

dist=${DIST:-dist}
mkdir -p "$dist"
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}

target_of() {
  case $1 in
  arm64) echo aarch64-unknown-linux-musl ;;
  armhf) echo arm-unknown-linux-musleabihf ;;
  amd64) echo x86_64-unknown-linux-musl ;;
  *) echo "cross/package.sh: $1 is none of: arm64 armhf amd64" >&2; return 2 ;;
  esac
}

package() {
  local arch=$1 binary root file
  binary=dist/$(target_of "$arch")/ferrule-edge
  [ -f "$binary" ] || { echo "cross/package.sh: $binary is not there; type: make cross" >&2; return 1; }
  root=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$root'" RETURN
  chmod 0755 "$root"

  install -D -m 0755 "$binary" "$root/usr/bin/ferrule-edge"
  install -D -m 0644 cross/deb/ferrule-edge.service "$root/lib/systemd/system/ferrule-edge.service"
  install -D -m 0644 cross/deb/edge.toml "$root/etc/ferrule/edge.toml"
  install -D -m 0644 cross/deb/rules.sql "$root/etc/ferrule/rules/rules.sql"
  install -d -m 0700 "$root/etc/ferrule/secrets"
  local doc=$root/usr/share/doc/ferrule-edge
  install -d -m 0755 "$doc"
  gzip -9n <crates/node/src/config/edge.default.toml >"$doc/edge.default.toml.gz"
  install -m 0644 docs/configuration.md docs/rules.md docs/rules-functions.md docs/guarantees.md "$doc/"
  gzip -9n "$doc"/*.md
  { echo "Ferrule is under the MIT licence or the Apache licence 2.0, as you like."; echo; cat LICENSE-MIT; echo
    echo "The Apache licence 2.0 is in /usr/share/common-licenses/Apache-2.0."; } >"$doc/copyright"
  chmod 0644 "$doc"/*

  install -d -m 0755 "$root/DEBIAN"
  install -m 0755 cross/deb/postinst cross/deb/prerm cross/deb/postrm "$root/DEBIAN/"
  printf '%s\n' /etc/ferrule/edge.toml /etc/ferrule/rules/rules.sql >"$root/DEBIAN/conffiles"
  (cd "$root" && find etc lib usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
  cat >"$root/DEBIAN/control" <<CONTROL
Package: ferrule-edge
Version: $version
Architecture: $arch
Maintainer: The Ferrule project <ferrule@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f 1)
Pre-Depends: init-system-helpers (>= 1.54)
Recommends: ca-certificates
Section: net
Priority: optional
Description: MQTT broker with SQL rules and a store-and-forward queue, for gateways
 Devices publish to it, SQL rules say what becomes of their messages, and what is
 for the cloud waits on this machine's disk until the cloud has acknowledged it.
CONTROL
  find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  file=$dist/ferrule-edge_${version}_${arch}.deb
  dpkg-deb --root-owner-group -Zxz --build "$root" "$file" >/dev/null
  printf '%9d bytes  %s\n' "$(stat -c %s "$file")" "$file"
}

if [ $# -eq 0 ]; then
  for arch in arm64 armhf amd64; do
    [ ! -f "dist/$(target_of "$arch")/ferrule-edge" ] || set -- "$@" "$arch"
  done
  [ $# -gt 0 ] || { echo "cross/package.sh: nothing in dist/; type: make cross" >&2; exit 1; }
fi
for arch in "$@"; do package "$arch"; done
