#!/usr/bin/env bash
# Builds the drivers of this folder into the tests' cache: `tests/clients/install.sh`, which tests/servers/install.sh calls.
#
# A folder is copied there and built in the copy; it is built again only when a file of it has changed. What the registries are asked for
# is pinned by the lock file of each: package-lock.json, go.sum, pom.xml (versions), Cargo.lock.
set -u -o pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${FERRULE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ferrule-tests}/clients
say() { echo "install.sh: $*"; }
die() { echo "install.sh: $*" >&2; exit 1; }

build_mqttjs() { npm ci --silent --omit=dev --ignore-scripts --no-audit --no-fund; }
# Debian 12's Go is older than what paho asks for, and too old to fetch another one by itself, as those from 1.21 on do.
build_go() {
  [[ $(go version) =~ go1\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 21 ] || { say "Go 1.21 or later is needed: https://go.dev/dl"; return 1; }
  CGO_ENABLED=0 go build -trimpath -o driver .
}
build_compose() { build_go; }
build_java() { mvn -B -q package >log 2>&1 || { cat log >&2; return 1; }; }
build_rumqttc() { cargo build --release --locked --quiet --target-dir target && cp target/release/rumqttc-driver driver && rm -r target; }

# Whether every file of folder $1 is the same in $2, which may have more.
same() {
  local file
  while IFS= read -r -d '' file; do cmp -s "$1/$file" "$2/$file" || return 1; done < <(cd "$1" && find . -type f -print0)
}

mkdir -p "$CACHE" || die "cannot make $CACHE"
exec 9>"$CACHE/lock" && flock 9 # two at once
for name in mqttjs go java rumqttc compose; do
  [ -e "$CACHE/$name/built" ] && same "$HERE/$name" "$CACHE/$name" && continue
  say "clients/$name into $CACHE/$name"
  rm -rf "${CACHE:?}/$name" && cp -r "$HERE/$name" "$CACHE/$name" || die "cannot copy to $CACHE/$name"
  (cd "$CACHE/$name" && "build_$name" </dev/null 9>&-) || die "could not build clients/$name"
  : >"$CACHE/$name/built"
done
