#!/usr/bin/env bash
# RMQTT's broker from crates.io: `tests/servers/rmqttd.sh` builds it into the tests' cache and prints where it is; nothing when it is there
# already. `--find` only looks, and exits 1 when it is not.
#
# 700 crates: half an hour on two cores. So it is no part of install.sh, and the tests with it (tests/tests/peers.rs) are skipped without
# it; `make peers` builds it and runs them. Optimised as little as a peer of tests needs.
set -euo pipefail
VERSION=0.24.0
CACHE=${FERRULE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ferrule-tests}
to=$CACHE/rmqttd-$VERSION
say() { echo "rmqttd.sh: $*" >&2; }
die() { say "$*"; exit 1; }

[ ! -x "$to/bin/rmqttd" ] || { echo "$to/bin/rmqttd"; exit; }
[ "${1:-}" != --find ] || die "no rmqttd in $to; type: make peers"

# protoc reads its cluster's messages, cmake builds librdkafka.
missing=()
command -v protoc >/dev/null || missing+=(protobuf-compiler)
command -v cmake >/dev/null || missing+=(cmake)
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || die "needs root for this; type: sudo apt-get install -y ${missing[*]}"
  log=$(mktemp)
  apt() { DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" </dev/null; }
  apt install "${missing[@]}" >"$log" 2>&1 || { apt update && apt install "${missing[@]}"; } >>"$log" 2>&1 ||
    { tail -n 40 "$log" >&2; die "apt-get failed (whole log: $log)"; }
  rm -f "$log"
fi

mkdir -p "$to"
exec 9>"$to/lock" && flock 9 # two at once
if [ ! -x "$to/bin/rmqttd" ]; then
  say "building rmqttd $VERSION into $to: half an hour on two cores"
  log=$to/build.log
  # Cargo's own settings here are the project's: its target folder and flags are not for this.
  env -u RUSTFLAGS CARGO_TARGET_DIR="$to/target" CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_LTO=off \
    cargo install --locked --root "$to" "rmqttd@$VERSION" >"$log" 2>&1 9>&- || { tail -n 40 "$log" >&2; die "cargo install failed (whole log: $log)"; }
  rm -rf "$to/target"
fi
echo "$to/bin/rmqttd"
