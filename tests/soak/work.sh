# What the consumers of the --exec kind run in the soak: as handlers.py does, by a shell.
echo "$JSONQUEUE_TASK_ID $JSONQUEUE_ATTEMPT" >"$WITNESS"
task=$(cat)
case $task in
*'"kind":"slow"'*) sleep 0.2 ;;
*'"kind":"fails"'*) [ "$JSONQUEUE_ATTEMPT" != 1 ] || { echo 'not today' >&2 && exit 1; } ;;
esac
echo '"done"'
