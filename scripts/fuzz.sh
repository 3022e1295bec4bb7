#!/usr/bin/env bash
# Fuzzes with AFL++, guided by coverage: PROGRAM is cairn-fuzz (the BGP codec, sessions and tables:
# fuzz/src/main.rs) or cairn-fuzz-cni (the CNI plugin and its socket: fuzz/src/cni.rs). Installs cargo-afl
# into DIRECTORY if it is missing; a stable Rust is enough.
#
# What it found stays in fuzz/out/PROGRAM: the next run goes on from there. Ends with an error when an input
# made it fail, now or in an earlier run, and says how to look at it.
#
# usage: fuzz.sh DIRECTORY SECONDS JOBS [PROGRAM]
set -euo pipefail

here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

AFL=0.18.2

directory=$(realpath -m "${1:?usage: fuzz.sh DIRECTORY SECONDS JOBS [PROGRAM]}")
seconds=${2:?usage: fuzz.sh DIRECTORY SECONDS JOBS [PROGRAM]}
jobs=${3:?usage: fuzz.sh DIRECTORY SECONDS JOBS [PROGRAM]}
name=${4:-cairn-fuzz}
out=out/$name
export PATH="$directory/bin:$PATH"

need cc gcc "linking, and AFL++'s runtime"
need make make "building AFL++"
install_missing
if [ "$(cargo afl --version 2>/dev/null | awk '{print $2}')" != "$AFL" ]; then
  echo "installing cargo-afl $AFL with AFL++ into $directory (compiles for about three minutes)"
  CARGO_TARGET_DIR="$directory/build" \
    cargo install --locked --root "$directory" "cargo-afl@$AFL"
  rm -rf "$directory/build"
fi
# The runtime belongs to one version of rustc; it says so itself when it is there already.
cargo afl config --build 2>/dev/null || true

cd "$here/../fuzz"
cargo afl build --release --locked
program=target/release/$name
[ -d "$out/seeds" ] || "$program" seeds "$out/seeds"

# Nothing of the machine is to be set up for it: findings are told by signals, not by core files.
export AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_SKIP_CPUFREQ=1 AFL_NO_AFFINITY=1 AFL_NO_UI=1
export AFL_AUTORESUME=1

pids=()
stop() {
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null || true
  done
}
trap stop EXIT INT TERM
for job in $(seq "$jobs"); do
  if [ "$job" = 1 ]; then role=(-M main); else role=(-S "helper$job"); fi
  cargo afl fuzz -i "$out/seeds" -o "$out/afl" -V "$seconds" "${role[@]}" "$program" \
    >"$out/log$job" 2>&1 &
  pids+=($!)
done
echo "fuzzing for $seconds s with $jobs processes; logs are fuzz/$out/log*"
failed=0
for pid in "${pids[@]}"; do
  wait "$pid" || failed=1
done
cargo afl whatsup -s "$out/afl" || true
if [ "$failed" = 1 ]; then
  tail -n 5 "$out"/log* >&2
  echo "error: a fuzzer ended early: see fuzz/$out/log*" >&2
  exit 1
fi

shopt -s nullglob
findings=("$out"/afl/*/crashes/id* "$out"/afl/*/hangs/id*)
if [ "${#findings[@]}" -gt 0 ]; then
  echo "error: ${#findings[@]} inputs make it fail. To look at one:" >&2
  echo "  cd fuzz && $program replay '${findings[0]}'" >&2
  echo "Put the input at fault, of BGP the message that it prints, into a test, with why it matters." >&2
  exit 1
fi
echo "nothing failed"
