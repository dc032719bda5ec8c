#!/usr/bin/env bash
# What stands for a trial in slots.py: it sleeps, and writes what a run writes for its agent. In: `trial config=FILE`; STEPS,
# EVERY (a validation), PAUSE (seconds between two), SLOT and AUDIT (a file of starts and ends) in the environment. Out: metrics.jsonl,
# result.json and an exit status. Its losses are drawn by the trial's number. It starts one process, mkdir, and holds under 1 MB.
LC_ALL=C
name=${2##*/} name=${name%.yaml} config=${2#config=}
folder=${config%/configs/*}/$name
audit() { printf '{"event": "%s", "slot": "%s", "time": %s}\n' "$1" "$SLOT" "$EPOCHREALTIME" >> "$AUDIT"; }
trap 'audit stopped; echo "error: terminated" >&2; exit 143' TERM
audit start
exec {never}<> <(:)
mkdir -p "$folder"
RANDOM=$((10#${name#trial-} + 1))
loss=$((2000 + RANDOM % 2000))
for ((step = EVERY; step <= STEPS; step += EVERY)); do
  read -rt "$PAUSE" -u "$never"
  ((value = loss + 20000 / step))
  printf '{"step": %d, "tokens": %d, "val/cross_entropy": %d.%03d}\n' $step $((64 * step)) $((value / 1000)) $((value % 1000)) \
    >> "$folder/metrics.jsonl"
done
echo '{"state": "finished"}' > "$folder/result.json"
audit end
