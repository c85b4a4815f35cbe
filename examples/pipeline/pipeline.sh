#!/usr/bin/env bash
# Compress every file of a folder that matches a pattern, through a queue, with the shell alone:
#
#   ./pipeline.sh FOLDER '*.log' [QUEUE]
#
# Three parts that could as well be three terminals, or three days: publish (needs no broker), serve, work.
set -euo pipefail

folder=$(cd "$1" && pwd)
pattern=$2
export JSONQUEUE_DIR=${3:-queue_data}
here=$(cd "$(dirname "$0")" && pwd)

# One JSON value a line. (For names with quotes or line feeds in them, let a program write the JSON: jq, or Python's json.)
find "$folder" -type f -name "$pattern" ! -name '*.gz' | sort | sed 's/.*/{"file": "&"}/' | jsonqueue publish --quiet --attempts-max 2

jsonqueue serve >serve.log 2>&1 &
serving=$!
trap 'kill $serving 2>/dev/null; wait $serving || true' EXIT

# Four at a time, until nothing is left to do.
jsonqueue work --exec "$here/compress.sh" --concurrency 4 --until-empty

jsonqueue status
jsonqueue --json list --status completed
