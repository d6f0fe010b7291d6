#!/usr/bin/env bash
# Builds ferrule-edge as one static file for small machines: dist/TARGET/ferrule-edge.
#
#   cross/build.sh [TARGET...]      without one: all of TARGETS below
#
# What it needs comes from package registries alone: zig (C compiler, linker, musl) and cargo-zigbuild from PyPI, crates from crates.io, and
# Rust's std from the first of these that works:
#   src        rustup component add rust-src; std is built with the program, as small as that
#   prebuilt   rustup target add; the file is larger then
#   debian     apt-get install rustc-web cargo-web rust-web-src, and as src (root only: it installs packages)
# STD=src (or another) allows that one alone. JOBS=2 is passed on to cargo. FEATURES="jq fast-regex": see edge/Cargo.toml.
# Tools and target folders are kept in ${CARGO_TARGET_DIR:-target}/cross.
set -euo pipefail

TARGETS=(aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf x86_64-unknown-linux-musl)
ZIG=0.17.1
ZIGBUILD=0.24.0

cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- "${TARGETS[@]}"
for target in "$@"; do
  case " ${TARGETS[*]} " in
  *" $target "*) ;;
  *) echo "cross/build.sh: $target is none of: ${TARGETS[*]}" >&2; exit 2 ;;
  esac
done

cache=${CARGO_TARGET_DIR:-$PWD/target}/cross
mkdir -p "$cache"
log=$cache/std.log
: >"$log"

venv=$cache/zig-$ZIG-zigbuild-$ZIGBUILD
if [ ! -e "$venv/complete" ]; then
  python3 -m venv --clear "$venv" || {
    echo "cross/build.sh: no Python with venv; type: sudo apt-get install -y python3-venv" >&2; exit 1; }
  "$venv/bin/pip" --quiet install "ziglang==$ZIG" "cargo-zigbuild==$ZIGBUILD"
  touch "$venv/complete"
fi

# LLVM's, which comes with rustc: it strips files of other machines.
sysroot=$(rustc --print sysroot)
objcopy=$(find "$sysroot/lib/rustlib" -path '*/bin/rust-objcopy' | head -n 1)
[ -n "$objcopy" ] || { echo "cross/build.sh: this Rust has no rust-objcopy; rustup's have" >&2; exit 1; }

prebuilt() { timeout 300 rustup target add "$1"; }
src() { timeout 300 rustup component add rust-src; }
debian() {
  [ -x /usr/bin/cargo ] && [ -e /usr/lib/rustlib/src/rust/library/std ] && return
  [ "$(id -u)" = 0 ] && apt-get -q update && apt-get -q install -y --no-install-recommends rustc-web cargo-web rust-web-src
}

build() (
  target=$1 std=
  for way in ${STD:-src prebuilt debian}; do
    echo "== $target: $way" >>"$log"
    if "$way" "$target" >>"$log" 2>&1; then std=$way; break; fi
  done
  [ -n "$std" ] || { echo "cross/build.sh: no std for $target, see $log" >&2; exit 1; }
  echo "== $target (std: $std)" >&2

  # The tools' folder comes first: cargo-zigbuild finds zig through its python3.
  export PATH=$venv/bin:$PATH ZIG_GLOBAL_CACHE_DIR=$cache/zig CARGO_ZIGBUILD_CACHE_DIR=$cache/zigbuild
  # They would replace the flags of the target that cargo-zigbuild sets.
  unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
  # SQLite without what neither the store nor the SQLite sink uses: full-text search, R-trees, statistics as tables, extensions (whose table
  # of functions keeps every one of the library's).
  export LIBSQLITE3_FLAGS="-USQLITE_ENABLE_FTS3 -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5 -USQLITE_ENABLE_RTREE \
    -USQLITE_ENABLE_DBSTAT_VTAB -USQLITE_ENABLE_STAT4 -USQLITE_SOUNDEX \
    -USQLITE_ENABLE_LOAD_EXTENSION -DSQLITE_OMIT_LOAD_EXTENSION"
  # No tables for functions through which nothing unwinds: those of C, and Rust's that cannot panic. What can be on the way from a panic
  # to where it is caught keeps its own. Paths of this machine are no texts of the program.
  cflags="-fno-unwind-tables -fno-asynchronous-unwind-tables"
  # zstd without the ways to compress that the levels in use do not take (crates/batch: 6, which is "lazy" and for little "lazy2";
  # crates/store-sqlite: -1, which is "fast"); another level would fall back to one of those. One way to decompress of two.
  cflags+=" -DZSTD_EXCLUDE_DFAST_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_GREEDY_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_BTLAZY2_BLOCK_COMPRESSOR"
  cflags+=" -DZSTD_EXCLUDE_BTOPT_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_BTULTRA_BLOCK_COMPRESSOR"
  cflags+=" -DZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT -DDYNAMIC_BMI2=0"
  flags=() rust=(-Cforce-unwind-tables=no "--remap-path-prefix=$sysroot/lib/rustlib/src/rust=std")
  for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do rust+=("--remap-path-prefix=$sources=crates"); done
  # ARMv7 has two sets of instructions. Thumb-2's are as fast and shorter, and Debian's armhf is made of them.
  if [ "$target" = armv7-unknown-linux-musleabihf ]; then
    rust+=(-Ctarget-feature=+thumb-mode)
    cflags+=" -Xclang -target-feature -Xclang +thumb-mode"
  fi
  export "CFLAGS_$(tr - _ <<<"$target")=$cflags"
  if [ "$std" = debian ]; then
    unset RUSTUP_TOOLCHAIN
    export CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
  fi
  if [ "$std" != prebuilt ]; then
    # No startup files come with a std that is built here: zig's are used.
    export RUSTC_BOOTSTRAP=1
    rust+=(-Clink-self-contained=no)
    # Without symbols beside it a panic can say addresses only; what would look for their names stays out.
    flags+=("-Zbuild-std=std,panic_unwind" "-Zbuild-std-features=panic-unwind,backtrace,backtrace-trace-only")
  fi
  # For the last step, in which the program is compiled as a whole. For aarch64 LLVM makes a function of what is repeated in those of opt-level
  # "z"; each has an entry of 28 bytes in the unwinding tables, which it does not count. (In all functions: 0.3 MiB less, and a third more
  # time for a message under an emulator.)
  last=()
  case $target in aarch64-*) last=(-Cllvm-args=-outliner-benefit-threshold=48) ;; esac
  name=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$target")_RUSTFLAGS
  export "$name=${rust[*]}"
  # One folder for each source of std: RUSTC_BOOTSTRAP makes everything be built anew.
  cargo-zigbuild rustc --locked --target "$target" --target-dir "$cache/$std" --profile edge ${JOBS:+--jobs "$JOBS"} "${flags[@]}" \
    --package ferrule-edge --bin ferrule-edge --no-default-features ${FEATURES:+--features "$FEATURES"} -- "${last[@]}"
  mkdir -p "dist/$target"
  # With its symbols beside it: what a panic's addresses mean, and the sizes of the parts.
  cp "$cache/$std/$target/edge/ferrule-edge" "dist/$target/ferrule-edge.symbols"
  LD_LIBRARY_PATH=$sysroot/lib "$objcopy" --strip-all "dist/$target/ferrule-edge.symbols" "dist/$target/ferrule-edge"
)

for target in "$@"; do build "$target"; done
