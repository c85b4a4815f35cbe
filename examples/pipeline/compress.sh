#!/bin/sh
# A consumer is any program: it reads one task as JSON on standard input and prints its result as JSON. Exit status 0 means done,
# any other failed: it is tried again, and its standard error is kept with the task.
set -eu

# Of the task only its payload is of interest here: {"file": "..."}.
file=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["data"]["file"])')
gzip -9 -n -c -- "$file" >"$file.gz.part"
mv -- "$file.gz.part" "$file.gz" # whoever sees the .gz sees all of it, also if this runs twice
printf '{"before": %d, "after": %d}\n' "$(wc -c <"$file")" "$(wc -c <"$file.gz")"
