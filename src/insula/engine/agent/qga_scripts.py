"""The shell scripts that give a command streams over the QEMU guest agent; `qga_exec` tells how they play.

POSIX sh (tried: dash, bash, busybox) with mkfifo, dd, cat and id. Opening a FIFO both ways (<>) never blocks
on Linux, and frees everybody who waits in open() for the other side.
"""

from __future__ import annotations

# $1 directory, $2 user, $3 working directory, $4 command. Prints one word.
PREPARE = r"""
umask 077
say() { echo "$1"; [ "$1" = ready ] || rm -rf "$d"; exit 0; }
d=$1
PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
mkdir "$d" && mkfifo "$d/in" "$d/eof" "$d/out" "$d/err" "$d/end" || say no-room
[ -z "$2" ] || id -u "$2" >/dev/null 2>&1 || say no-user
[ -z "$3" ] || cd "$3" 2>/dev/null || say no-directory
case $4 in
*/*)
    [ -e "$4" ] || say not-found
    [ -f "$4" ] && [ -x "$4" ] || say not-executable
    say ready ;;
esac
found=not-found
IFS=:
for p in $PATH; do
    [ ! -f "$p/$4" ] || found=not-executable
    [ ! -f "$p/$4" ] || [ ! -x "$p/$4" ] || say ready
done
say $found
"""

# $1 directory, $2 user, $3 working directory, $4 number of NAME=VALUE words that follow, then the command.
# A user comes by setpriv (util-linux) or, with busybox, by su; a session of its own by setsid where there is.
RUN = r"""
umask 022
_dir=$1 _user=$2 _cwd=$3 _n=$4
shift 4
PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
_uid=$(id -u ${_user:+"$_user"}) _gid=$(id -g ${_user:+"$_user"}) _own=$(id -u) HOME=/
while IFS=: read -r _name _x _number _x _x _home _shell; do
    [ "$_number" != "$_uid" ] || { HOME=$_home USER=$_name LOGNAME=$_name SHELL=${_shell:-/bin/sh}; break; }
done </etc/passwd
_login=$USER
export PATH HOME USER LOGNAME SHELL
if [ -n "$_cwd" ]; then cd "$_cwd"; else cd "$HOME" 2>/dev/null || cd /; fi
exec 3<>"$_dir/in" 4>"$_dir/in" 5<>"$_dir/out" 6<>"$_dir/err"
( ( read -r _x <"$_dir/eof" ) 3<&- 5<&- 6<&- & ) </dev/null >/dev/null 2>&1
( ( read -r _x <"$_dir/end" ) 3<&- 4>&- & ) </dev/null >/dev/null 2>&1
exec <"$_dir/in" >"$_dir/out" 2>"$_dir/err" 3<&- 4>&- 5<&- 6<&-
while [ "$_n" -gt 0 ]; do export "$1"; shift; _n=$((_n - 1)); done
_session=
command -v setsid >/dev/null 2>&1 && _session=setsid
[ -n "$_user" ] && [ "$_uid" != "$_own" ] || exec $_session "$@"
if setpriv --version >/dev/null 2>&1; then
    exec $_session setpriv --reuid "$_uid" --regid "$_gid" --init-groups -- "$@"
fi
exec $_session su -s /bin/sh "$_login" -c 'exec "$0" "$@"' "$@"
"""

# $1 directory. One read of what is there, once something is; nothing at the end.
READ_OUT = 'exec dd bs=65536 count=1 <"$1/out" 2>/dev/null'
READ_ERR = 'exec dd bs=65536 count=1 <"$1/err" 2>/dev/null'
WRITE_IN = 'exec cat >"$1/in"'
END_IN = ': >"$1/eof"'

# $1 directory, $2 mark. A write of at most PIPE_BUF bytes is whole, and behind all that was written before.
MARK = 'printf %s "$2" 1<>"$1/out" && printf %s "$2" 1<>"$1/err"'

# $1 signal's number, $2 pid of the command.
SIGNAL = 'kill "-$1" "-$2" 2>/dev/null || kill "-$1" "$2"'

# $1 directory. Both holders end, and with them whoever waits in a FIFO.
CLEAN = '[ -d "$1" ] || exit 0; exec 3<>"$1/eof" 4<>"$1/end" 5<>"$1/in" 6<>"$1/out" 7<>"$1/err"; rm -rf "$1"'
