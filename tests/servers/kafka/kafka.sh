#!/usr/bin/env bash
# Real Apache Kafka (KRaft) for tests: one node or three, on 127.0.0.1 only.
#   kafka.sh fetch                           jars into $KAFKA_HOME_DIR/lib (idempotent, safe to run twice at once)
#   kafka.sh start  DATA_DIR [PORT [CPORT]]  one broker+controller; PORT for clients, CPORT (PORT+1) for the controller.
#                                            Without PORT: restart of a DATA_DIR (or DATA_DIR/n2) that was started before.
#   kafka.sh run    DATA_DIR [PORT [CPORT]]  the same in the foreground: this process BECOMES the broker (exec), no pid file race,
#                                            no waiting; the caller owns the child and can set PR_SET_PDEATHSIG on it
#   kafka.sh start3 DATA_DIR [PORT]          3 broker+controllers in DATA_DIR/n1..n3 on PORT, +1, +2 (controllers +3, +4, +5)
#   kafka.sh wait   DATA_DIR [BROKERS]       until ApiVersions is answered and Metadata shows BROKERS brokers
#   kafka.sh stop | kill | pause | resume DATA_DIR    SIGTERM+wait | SIGKILL+wait | SIGSTOP | SIGCONT (DATA_DIR of start3: all three)
#   kafka.sh status DATA_DIR                 per node: pid, state, RSS
#   kafka.sh topics DATA_DIR|PORT create|list|describe|delete [TopicCommand options]
#   kafka.sh tool   CLASS [ARGS...]          any Java class of the jars
# Environment: KAFKA_HOME_DIR (~/.cache/kafka-for-tests), KAFKA_HEAP (384m), KAFKA_JVM_OPTS (-XX:TieredStopAtLevel=1: half the
#   CPU time at start; set it empty for a long benchmark), KAFKA_AUTO_CREATE (false), KAFKA_PARTITIONS (1),
#   KAFKA_HOST (127.0.0.1; e.g. the project's own address in a network namespace), KAFKA_START_TIMEOUT (60),
#   KAFKA_EXTRA_CONFIG (file of lines appended to server.properties, later lines win), KAFKA_FORMAT_ARGS (e.g. --add-scram ...)
set -u -o pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
HOME_DIR=${KAFKA_HOME_DIR:-$HOME/.cache/kafka-for-tests}
HOST=${KAFKA_HOST:-127.0.0.1}
TIMEOUT=${KAFKA_START_TIMEOUT:-60}
die() { echo "kafka.sh: $*" >&2; exit 1; }

fetch() {
  mkdir -p "$HOME_DIR" || die "cannot make $HOME_DIR"
  local want; want=$(sha256sum <"$HERE/pom.xml")
  [ "$(cat "$HOME_DIR/stamp" 2>/dev/null)" = "$want" ] && return 0
  (
    flock 9
    [ "$(cat "$HOME_DIR/stamp" 2>/dev/null)" = "$want" ] && exit 0
    rm -rf "$HOME_DIR/lib" "$HOME_DIR/lib.new" "$HOME_DIR/stamp"
    cp "$HERE/pom.xml" "$HOME_DIR/pom.xml"
    local m=(mvn -B -q -f "$HOME_DIR/pom.xml" "-Dlib.dir=$HOME_DIR/lib.new" package)
    "${m[@]}" -o >/dev/null 2>&1 </dev/null || "${m[@]}" >"$HOME_DIR/mvn.log" 2>&1 </dev/null || { cat "$HOME_DIR/mvn.log" >&2; exit 1; }
    mv "$HOME_DIR/lib.new" "$HOME_DIR/lib"
    cat >"$HOME_DIR/log4j2-broker.xml" <<'X'
<Configuration status="ERROR">
  <Appenders>
    <RollingFile name="F" fileName="${sys:kafka.logs.dir}/server.log" filePattern="${sys:kafka.logs.dir}/server.log.%i">
      <PatternLayout pattern="%d{ISO8601} %p %m (%c{1})%n"/>
      <Policies><SizeBasedTriggeringPolicy size="20 MB"/></Policies><DefaultRolloverStrategy max="2"/>
    </RollingFile>
  </Appenders>
  <Loggers><Root level="INFO"><AppenderRef ref="F"/></Root></Loggers>
</Configuration>
X
    cat >"$HOME_DIR/log4j2-tools.xml" <<'X'
<Configuration status="ERROR">
  <Appenders><Console name="E" target="SYSTEM_ERR"><PatternLayout pattern="%p %m (%c{1})%n"/></Console></Appenders>
  <Loggers><Root level="ERROR"><AppenderRef ref="E"/></Root></Loggers>
</Configuration>
X
    # Class data sharing: one throw-away broker writes kafka.jsa at its exit; it halves the CPU time of every later start
    local d=$HOME_DIR/warm p; rm -rf "$d" "$HOME_DIR/kafka.jsa"
    for _ in 1 2 3; do
      p=$((20000 + RANDOM % 10000)); port_free $p && port_free $((p + 1)) || continue
      ( unset KAFKA_EXTRA_CONFIG KAFKA_FORMAT_ARGS KAFKA_HEAP; KAFKA_JVM_OPTS="-XX:ArchiveClassesAtExit=$HOME_DIR/kafka.jsa"
        one "$d" $p $((p + 1)) && launch "$d" && wait_ready 1 $(($(date +%s) + 60)) "$d" &&
        tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$HOST:$p" --create --topic warm ) >"$HOME_DIR/warm.log" 2>&1
      signal TERM "$d"; gone 60 "$d" || { signal KILL "$d"; gone 10 "$d"; }
      rm -rf "$d"; [ -f "$HOME_DIR/kafka.jsa" ] && break
    done
    [ -f "$HOME_DIR/kafka.jsa" ] || echo "kafka.sh: no class data archive (starts are slower): $HOME_DIR/warm.log" >&2
    echo "$want" >"$HOME_DIR/stamp"
  ) 9>"$HOME_DIR/lock"
}

# Class data sharing wants the same class path, in the same order, at dump and at use: so no wildcard.
# -XX:-UsePerfData: no /tmp/hsperfdata_*.
jvm_opts() {
  local cp; cp=$(printf '%s:' "$HOME_DIR"/lib/*.jar)
  OPTS=(-cp "${cp%:}" -XX:+UseSerialGC -XX:-UsePerfData -Djava.awt.headless=true)
  [ -f "$HOME_DIR/kafka.jsa" ] && OPTS+=("-XX:SharedArchiveFile=$HOME_DIR/kafka.jsa" -Xshare:auto -Xlog:cds=off -Xlog:cds+dynamic=off)
}
tool() { # a small JVM
  local OPTS; jvm_opts
  java "${OPTS[@]}" -Xmx128m -XX:TieredStopAtLevel=1 "-Dlog4j2.configurationFile=file:$HOME_DIR/log4j2-tools.xml" "$@"
}

prop() { sed -n "s/^$2=//p" "$1/server.properties" | tail -1; } # the last line wins, as in Java
absdir() { mkdir -p "$1" && (cd "$1" && pwd); }

# The pid of DIR's broker if it is alive AND is the process that was started (same start time: no pid reuse).
live_pid() {
  local pid st; [ -f "$1/pid" ] && read -r pid st <"$1/pid" || return 1
  [ "$(start_time "$pid")" = "$st" ] && [ -n "$st" ] && echo "$pid"
}
start_time() { # field 22 of stat; nothing for a gone process or a zombie
  local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  s=${s##*) }; set -- $s; [ "$1" = Z ] || echo "${20}"
}
port_free() { ! (exec 3<>"/dev/tcp/$HOST/$1") 2>/dev/null; }

# hex of the first N bytes that $HOST:PORT answers to the request (printf escapes)
ask() { timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "$2" >&3 && head -c "$3" <&3 | od -An -v -tx1 | tr -d " \n"' "$HOST" "$1" "$2" "$3" 2>/dev/null; }
ready() { # PORT BROKERS: ApiVersions v0 answered without error, Metadata v1 (no topics) shows enough unfenced brokers
  local r; r=$(ask "$1" '\0\0\0\012\0\022\0\0\0\0\0\001\377\377' 10)
  [ "${r:8}" = 000000010000 ] || return 1
  r=$(ask "$1" '\0\0\0\016\0\003\0\001\0\0\0\002\377\377\0\0\0\0' 12)
  [ ${#r} = 24 ] && [ $((16#${r:16})) -ge "$2" ]
}
wait_ready() { # BROKERS DEADLINE DIR...
  local n=$1 end=$2 d dead; shift 2
  dead=$(($(date +%s) + ${GRACE:-0}))
  for d; do
    until [ -f "$d/server.properties" ] && ready "$(prop "$d" test.port)" "$n"; do
      live_pid "$d" >/dev/null || [ "$(date +%s)" -le "$dead" ] || { tail -n 20 "$d/console.log" "$d/logs/server.log" >&2; die "broker in $d is not running"; }
      [ "$(date +%s)" -lt "$end" ] || { tail -n 20 "$d/logs/server.log" >&2 2>/dev/null; die "broker in $d not ready in time"; }
      sleep 0.1
    done
  done
}

# DIR ID PORT CPORT VOTERS RF MINISR CLUSTER: writes the config and formats the storage, when new
prepare() {
  local d=$1
  [ -f "$d/data/meta.properties" ] && return 0
  mkdir -p "$d/logs" "$d/tmp"
  cat >"$d/server.properties" <<P
# read only by kafka.sh
test.port=$3
# Kafka
process.roles=broker,controller
node.id=$2
controller.quorum.voters=$5
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://$HOST:$3,CONTROLLER://$HOST:$4
advertised.listeners=PLAINTEXT://$HOST:$3
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=$d/data
auto.create.topics.enable=${KAFKA_AUTO_CREATE:-false}
num.partitions=${KAFKA_PARTITIONS:-1}
default.replication.factor=$6
min.insync.replicas=$7
offsets.topic.replication.factor=$6
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=$6
transaction.state.log.min.isr=$7
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=$6
share.coordinator.state.topic.min.isr=$7
share.coordinator.state.topic.num.partitions=3
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=4194304
# a killed broker is fenced, and may register again, after this (default 9000 and 2000)
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
controlled.shutdown.enable=true
P
  [ -n "${KAFKA_EXTRA_CONFIG:-}" ] && cat "$KAFKA_EXTRA_CONFIG" >>"$d/server.properties"
  # shellcheck disable=SC2086
  tool "-Djava.io.tmpdir=$d/tmp" kafka.tools.StorageTool format -t "$8" -c "$d/server.properties" ${KAFKA_FORMAT_ARGS:-} \
    >"$d/format.log" 2>&1 </dev/null || { cat "$d/format.log" >&2; rm -rf "$d/data"; die "format failed in $d"; }
}
cluster_id() { # 22 characters of base64url; one that begins with '-' would be read as an option
  local i=-; while [ "${i#-}" != "$i" ]; do i=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '='); done; echo "$i"
}
JVM() { # DIR: the broker's command line in array CMD
  # java.io.tmpdir: zstd, lz4 and snappy unpack their native libraries there and a killed broker leaves them behind
  local OPTS; jvm_opts
  # shellcheck disable=SC2206
  CMD=(java "${OPTS[@]}" "-Xms${KAFKA_HEAP:-384m}" "-Xmx${KAFKA_HEAP:-384m}" -XX:+ExitOnOutOfMemoryError ${KAFKA_JVM_OPTS--XX:TieredStopAtLevel=1}
    "-Djava.io.tmpdir=$1/tmp" "-XX:ErrorFile=$1/hs_err.log" "-Dkafka.logs.dir=$1/logs"
    "-Dlog4j2.configurationFile=file:$HOME_DIR/log4j2-broker.xml" kafka.Kafka "$1/server.properties")
}
launch() { # DIR: in its own session, holding none of the caller's files, so a test's pipes close
  local d=$1 pid CMD
  rm -rf "$d/tmp"; mkdir -p "$d/tmp" "$d/logs"; JVM "$d"
  ( cd "$d" && for f in /proc/self/fd/*; do f=${f##*/}; [ "$f" -gt 2 ] && eval "exec $f>&-" 2>/dev/null; done
    exec setsid "${CMD[@]}" ) </dev/null >>"$d/console.log" 2>&1 &
  pid=$!; disown; echo "$pid $(start_time "$pid")" >"$d/pid"
}
one() { # DIR PORT CPORT
  [ -f "$1/server.properties" ] && [ -f "$1/data/meta.properties" ] && return 0
  [ -n "$2" ] || die "new DATA_DIR: give a PORT"
  prepare "$1" 1 "$2" "$3" "1@$HOST:$3" 1 1 "$(cluster_id)"
}
nodes() { if [ -d "$1/n1" ]; then echo "$1/n1" "$1/n2" "$1/n3"; else echo "$1"; fi; }
signal() { # SIG DIR...: only to the pid that was started
  local s=$1 d p; shift
  for d; do p=$(live_pid "$d") && kill -"$s" "$p" 2>/dev/null; done; return 0
}
gone() { # SECONDS DIR...
  local end=$(($(date +%s) + $1)) d; shift
  for d; do while live_pid "$d" >/dev/null; do [ "$(date +%s)" -lt "$end" ] || return 1; sleep 0.05; done; rm -f "$d/pid"; done
}

cmd=${1:-}; [ $# -gt 0 ] && shift
case $cmd in
  fetch) fetch ;;
  start|run)
    [ $# -ge 1 ] || die "$cmd DATA_DIR [PORT [CPORT]]"
    fetch || exit 1; d=$(absdir "$1") || exit 1; port=${2:-}; cport=${3:-$((${port:-0} + 1))}
    live_pid "$d" >/dev/null && die "already running in $d"
    [ -d "$d/n1" ] && die "$d holds three nodes: start3, or start $d/n1"
    [ -f "$d/data/meta.properties" ] && port=$(prop "$d" test.port) || { [ -z "$port" ] || port_free "$cport" || die "port $cport is taken"; }
    [ -z "$port" ] || port_free "$port" || die "port $port is taken"
    one "$d" "$port" "$cport"
    if [ "$cmd" = run ]; then
      rm -rf "$d/tmp"; mkdir -p "$d/tmp" "$d/logs"; JVM "$d"; cd "$d" || exit 1
      echo "$$ $(start_time $$)" >"$d/pid"; exec "${CMD[@]}" </dev/null
    fi
    launch "$d"; ( wait_ready 1 $(($(date +%s) + TIMEOUT)) "$d" ) || { signal KILL "$d"; gone 10 "$d"; exit 1; } ;;
  start3)
    [ $# -ge 1 ] || die "start3 DATA_DIR [PORT]"
    fetch || exit 1; d=$(absdir "$1") || exit 1; p=${2:-}
    if [ ! -f "$d/n3/data/meta.properties" ]; then
      [ -n "$p" ] || die "new DATA_DIR: give a PORT"
      for i in 0 1 2 3 4 5; do port_free $((p + i)) || die "port $((p + i)) is taken"; done
      v="1@$HOST:$((p + 3)),2@$HOST:$((p + 4)),3@$HOST:$((p + 5))"; c=$(cluster_id); js=()
      for i in 1 2 3; do mkdir -p "$d/n$i"; ( prepare "$d/n$i" $i $((p + i - 1)) $((p + i + 2)) "$v" 3 2 "$c" ) & js+=($!); done
      for j in "${js[@]}"; do wait "$j" || exit 1; done
    fi
    for i in 1 2 3; do live_pid "$d/n$i" >/dev/null || { port_free "$(prop "$d/n$i" test.port)" || die "port of n$i is taken"; }; done
    for i in 1 2 3; do live_pid "$d/n$i" >/dev/null || launch "$d/n$i"; done
    ( wait_ready 3 $(($(date +%s) + TIMEOUT)) "$d/n1" "$d/n2" "$d/n3" ) || { signal KILL "$d/n1" "$d/n2" "$d/n3"; gone 10 "$d/n1" "$d/n2" "$d/n3"; exit 1; } ;;
  wait) d=$(absdir "${1:?}"); ns=$(nodes "$d"); GRACE=5; wait_ready "${2:-$(wc -w <<<"$ns")}" $(($(date +%s) + TIMEOUT)) $ns ;;
  stop) d=$(absdir "${1:?}"); ns=$(nodes "$d"); signal CONT $ns; signal TERM $ns; gone 20 $ns || { signal KILL $ns; gone 10 $ns; } ;;
  kill) d=$(absdir "${1:?}"); ns=$(nodes "$d"); signal KILL $ns; gone 10 $ns ;;
  pause) signal STOP $(nodes "$(absdir "${1:?}")") ;;
  resume) signal CONT $(nodes "$(absdir "${1:?}")") ;;
  status)
    for n in $(nodes "$(absdir "${1:?}")"); do
      if p=$(live_pid "$n"); then echo "$n pid $p port $(prop "$n" test.port) $(grep -E 'VmRSS|VmHWM|^State' "/proc/$p/status" | tr -s '\t ' ' ' | tr '\n' ' ')"
      else echo "$n down"; fi; done ;;
  topics)
    [ $# -ge 2 ] || die "topics DATA_DIR|PORT create|list|describe|delete [options]"
    fetch || exit 1; w=$1 v=$2; shift 2; b=
    case $w in *[!0-9]*) for n in $(nodes "$(absdir "$w")"); do b=${b:+$b,}$HOST:$(prop "$n" test.port); done ;; *) b=$HOST:$w ;; esac
    tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$b" "--$v" "$@" ;;
  tool) fetch || exit 1; tool "$@" ;;
  *) sed -n '2,20p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
