"""Shell that starts a program, passes the warning that it will be stopped on to it, and knows how it ended."""

from __future__ import annotations

WAIT = """\
child=$!
trap "again=yes; stopped=yes; kill -{signal} $child" USR1 TERM
again=yes
while [ -n "$again" ]; do
    again=
    wait "$child"
    code=$?
done
"""
"""For bash, after a program was started in the background: $code is its exit status, $stopped says whether to start no more.

A signal ends `wait` too, and then the program is still to be waited for.
"""

RESTARTING = (
    """\
stopped=
for restart in $(seq 0 {restarts}); do
    [ "$restart" = 0 ] || echo "lockstep: restart $restart of {restarts}" >&2
    "$@" &
"""
    + "".join(f"    {line}\n" for line in WAIT.format(signal="TERM").splitlines())
    + """\
    # 75: it has saved and asks for another start; above 128: a signal ended it.
    if [ -n "$stopped" ] || {{ [ "$code" != 75 ] && [ "$code" -le 128 ]; }}; then break; fi
done
"""
)
"""For bash: runs "$@" until it is done, fails for good or is told to stop; $code is the last exit status."""
