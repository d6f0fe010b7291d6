#!/usr/bin/env bash
# A million real sockets: what each machine has to do. The page is docs/million.md.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
bin=${FERRULE_BIN_DIR:-$here/../../target/release}
# Sockets of this machine, with room for what else it opens.
files=${FILES:-2200000}

usage() {
    cat >&2 <<'END'
run.sh tune                             kernel limits of this machine, as root; prints each one it sets
run.sh addresses DEVICE FIRST/BITS N    N source addresses from FIRST on, as root (load machines)
run.sh broker [ferrule|mosquitto|floor] starts a broker, in the foreground
run.sh load [OPTION...] IP:PORT...      the crowd, against a broker elsewhere; prints what came of it as JSON
run.sh here [CLIENTS]                   all of it on this machine, small, from 127.0.0.x: does it work?
load takes CLIENTS, SOURCES (addresses, blanks between), CONNECTING, KEEP_ALIVE, HOLD, REACH, PREFIX from the environment.
END
    exit 2
}

tune() {
    # One setting a line; why each is needed: docs/million.md.
    while read -r name value; do
        if sysctl -qw "$name=$value" 2>/dev/null; then
            echo "$name = $(sysctl -n "$name")"
        else
            echo "$name: cannot be set here" >&2
        fi
    done <<END
fs.nr_open $files
fs.file-max $((2 * files))
net.core.somaxconn 65535
net.core.netdev_max_backlog 65535
net.ipv4.tcp_max_syn_backlog 65535
net.ipv4.ip_local_port_range 10000 65535
net.ipv4.tcp_mem 1048576 2097152 4194304
net.ipv4.tcp_rmem 4096 8192 1048576
net.ipv4.tcp_wmem 4096 8192 1048576
net.ipv4.tcp_tw_reuse 1
net.ipv4.tcp_max_tw_buckets 2000000
net.ipv4.tcp_max_orphans 1048576
END
    if [ -e /proc/sys/net/netfilter/nf_conntrack_max ]; then
        echo "conntrack is loaded: it keeps 300 to 400 bytes a connection and refuses beyond its maximum. Off for these ports:" >&2
        echo "  iptables -t raw -I PREROUTING -p tcp -m multiport --ports 1883:1886 -j CT --notrack" >&2
        echo "  iptables -t raw -I OUTPUT -p tcp -m multiport --ports 1883:1886 -j CT --notrack" >&2
    fi
}

addresses() {
    [ $# -eq 3 ] || usage
    local device=$1 first=${2%/*} bits=${2#*/} count=$3 index
    local prefix=${first%.*} last=${first##*.}
    for ((index = 0; index < count; index++)); do
        [ $((last + index)) -le 254 ] || { echo "no more addresses in $prefix.*: call it again for another /24" >&2; exit 1; }
        ip addr replace "$prefix.$((last + index))/$bits" dev "$device"
        echo "$prefix.$((last + index))"
    done
}

raise() {
    # A soft limit may be raised to the hard one by anyone, the hard one by root.
    ulimit -n "$files" 2>/dev/null || ulimit -n "$(ulimit -Hn)"
    echo "open files: $(ulimit -n)" >&2
}

broker() {
    raise
    case ${1:-ferrule} in
        ferrule) exec "$bin/ferrule-edge" run --config "$here/ferrule.toml" ;;
        mosquitto) exec "$(PATH=$PATH:/usr/sbin command -v mosquitto)" -c "$here/mosquitto.conf" ;;
        floor) exec "$bin/ferrule-bench" floor --listen 0.0.0.0:1883 ;;
        *) usage ;;
    esac
}

load() {
    raise
    local args=() word
    while [ $# -gt 0 ] && [[ $1 == -* ]]; do args+=("$1"); shift; done
    [ $# -gt 0 ] || usage
    for word in "$@"; do args+=("--addr=$word"); done
    for word in ${SOURCES:-}; do args+=("--source=$word"); done
    "$bin/ferrule-bench" crowd --clients="${CLIENTS:-50000}" --connecting="${CONNECTING:-50}" \
        --keep-alive="${KEEP_ALIVE:-240}" --hold="${HOLD:-200}" --reach="${REACH:-own}" \
        --prefix="${PREFIX:-$(hostname)}" --timeout=60 "${args[@]}"
}

here() {
    local port=${PORT:-18831} pid
    "$bin/ferrule-bench" floor --listen "127.0.0.1:$port" &
    pid=$!
    # shellcheck disable=SC2064
    trap "kill $pid 2>/dev/null" EXIT
    sleep 0.5
    CLIENTS=${1:-2000} SOURCES=${SOURCES:-127.0.0.2 127.0.0.3 127.0.0.4} KEEP_ALIVE=${KEEP_ALIVE:-4} HOLD=${HOLD:-1} \
        load "--watch=$pid" "127.0.0.1:$port"
}

case ${1:-} in
    tune) tune ;;
    addresses) shift; addresses "$@" ;;
    broker) shift; broker "$@" ;;
    load) shift; load "$@" ;;
    here) shift; here "$@" ;;
    *) usage ;;
esac
