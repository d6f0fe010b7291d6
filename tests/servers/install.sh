#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: `tests/servers/install.sh`.
# With --cross also what those of the ARM builds and Debian packages need.
#
# Debian's packages (as root, or by `sudo -n`), the jars of a real Kafka (Maven), paho-mqtt and Kubernetes' schemas (PyPI) in a virtual
# environment, and the drivers of other people's clients (tests/clients). What is already there is not touched, and when everything is
# there nothing asks the network.
# Nothing is started: packages that would start a service (postgresql, mosquitto, nginx, haproxy) or make a database cluster are kept
# from it. Without the right to install, it prints the line to type and exits 1.
set -u -o pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${FERRULE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ferrule-tests}
say() { echo "install.sh: $*"; }
die() { echo "install.sh: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

# What is missing, as packages. Each is known by the command that the tests call.
missing=()
need() { # PACKAGE COMMAND...
  local package=$1 c; shift
  for c; do have "$c" || { missing+=("$package"); return; }; done
}
need mosquitto mosquitto
need mosquitto-clients mosquitto_pub mosquitto_sub
need openjdk-17-jdk-headless java javac
need maven mvn
need iproute2 ip
need nftables nft
need util-linux setpriv flock setsid unshare
need nginx-light nginx
need haproxy haproxy
need chromium chromium
need libnss3-tools certutil
need npm npm node
need golang-go go
need perl perl
need make make
need gcc cc
need g++ c++
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing+=(libnginx-mod-stream)
have psql || missing+=(postgresql-client-15)
[ -x /usr/lib/postgresql/15/bin/postgres ] && [ -x /usr/lib/postgresql/15/bin/initdb ] || missing+=(postgresql-15)
if ! python3 -c 'import venv, ensurepip' >/dev/null 2>&1; then missing+=(python3 python3-venv); fi

if [ "${1:-}" = --cross ]; then
  need qemu-user qemu-arm
  need qemu-user-static qemu-arm-static qemu-aarch64-static
  need debootstrap debootstrap
  need systemd-container systemd-nspawn
  need busybox-static busybox
  need buildah buildah
  [ -e /usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 ] || missing+=(faketime)
fi

if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${missing[*]}"
  root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || die "needs root for this; type: sudo apt-get install -y ${missing[*]}"
    root=(sudo -n)
  fi
  have apt-get || die "no apt-get here; install by hand: ${missing[*]}"
  # policy-rc.d 101: 'action forbidden'. Without it the packages start a PostgreSQL on 5432, a mosquitto on 1883, an nginx on 80.
  policy=/usr/sbin/policy-rc.d made=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null && "${root[@]}" chmod 755 "$policy" && made=1
  fi
  trap '[ -z "$made" ] || "${root[@]}" rm -f "$policy"' EXIT
  trap 'exit 130' INT TERM
  # postgresql-common makes a cluster `main` when a server package is configured, unless this says no.
  conf=/etc/postgresql-common/createcluster.conf
  if [ ! -e "$conf" ]; then
    "${root[@]}" mkdir -p "${conf%/*}" && echo 'create_main_cluster = false' | "${root[@]}" tee "$conf" >/dev/null
  fi
  apt() { # confold: keep the createcluster.conf written above
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends \
      -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=120 "$@" </dev/null
  }
  log=$(mktemp)
  # A package list that is old or absent: one update, then once more.
  if ! apt install "${missing[@]}" >"$log" 2>&1; then
    say "apt-get update"
    { apt update && apt install "${missing[@]}"; } >>"$log" 2>&1 || { tail -n 40 "$log" >&2; die "apt-get failed (whole log: $log)"; }
  fi
  rm -f "$log"
fi

# paho-mqtt, the reference client in Python; and the schemas of Kubernetes' API.
venv=$CACHE/venv
if ! "$venv/bin/python" -c 'import paho.mqtt.client, kubernetes_validate' >/dev/null 2>&1; then
  say "paho-mqtt and kubernetes-validate into $venv"
  mkdir -p "$CACHE" && python3 -m venv --clear "$venv" || die "python3 -m venv $venv failed"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check 'paho-mqtt==2.1.0' 'kubernetes-validate==1.37.0' </dev/null || die "pip could not install paho-mqtt and kubernetes-validate"
fi

"$HERE/../clients/install.sh" || exit
"$HERE/kafka/kafka.sh" fetch || die "kafka.sh fetch failed"
say "everything is there"
