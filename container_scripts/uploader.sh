#!/bin/sh
# uploader.sh: reads the core of a faulting process from stdin, and stores it where its container wants it.
#
#     uploader.sh [DESTINATION] [PID UID GID] <core
#
# DESTINATION   s3://BUCKET/PREFIX/, file:///DIRECTORY or an absolute directory. If it is missing or empty, CORE_DESTINATION
#               in the environment counts, so each container may choose its own.
# PID UID GID   of the faulting process, for a name without CORE_KEY; without them CORE_PID, CORE_UID and CORE_GID count.
#
# The core becomes DESTINATION/<CORE_KEY>.core, an object of the bucket or a file; the script creates no directory. It compresses
# the core (.zst, .gz) if the image has zstd or gzip. docker_core_helper makes CORE_KEY, a name that no other core has. An older
# docker_core_helper sets no CORE_KEY: then the core becomes <host name>/<program>.<pid>.<uid>.<gid>.<time>.core in a bucket, and
# <host name>.<program>.<pid>.<uid>.<gid>.<time>.core in a directory, of CORE_HOSTNAME, CORE_COMM (else the last part of
# CORE_EXE) and CORE_TIME. On success the script writes the full name to stderr as one line, which the host logs.
#
# For s3:// the script uses rclone if the image has it, else aws. Both take the endpoint, the region and the credentials from
# AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and so on; rclone also from
# RCLONE_S3_*. Neither needs a configuration file, a home directory or a writable disk. The bucket must exist. The rights needed
# are s3:PutObject and, for rclone, which looks at the object afterwards, s3:GetObject. The client sends the core in parts of 16
# MiB, of which S3 allows 10,000: at most 156 GiB after compression. An upload that is killed can leave parts, but no object; a
# lifecycle rule of the bucket (AbortIncompleteMultipartUpload) removes them.
#
# DIRECTORY must exist. Where processes of several users crash, make it sticky and writable by all, like /tmp: mode 1777. A core
# there has mode 0600 and belongs to the user of the faulting process. That user can delete or replace it; so can root, the
# owner of DIRECTORY, and whoever may rename DIRECTORY itself. Others cannot, but everybody who may write there can fill the
# disk. On a volume that containers share, a uid is the same user in all of them. If DIRECTORY is writable by all and not
# sticky, everybody can delete and replace every core; one line on stderr warns of it. An upload that is killed can leave a part
# of a core under a hidden name, DIRECTORY/.<name>.XXXXXX.
#
# CORE_TRUNCATED=1 says that the core was cut off before the script has got it: object or file are named <name>.truncated.
#
# SIGTERM to the process group says that the whole core does not come: docker_core_helper sends it at the deadline, and where
# the core was cut off. Then a bucket gets no object. In a directory, what has come until then gets the name <name>.truncated.
#
# What the exit code of a delegate, this script or another, means to docker_core_helper:
#
#     0                                the core is stored; or, if the delegate has read nothing of it, not wanted
#     75                               failed as with another code; the store may take the core later, so keep it and try again
#     another code, nothing was read   the fallback file gets the whole core, if it is enabled; else the core is dropped
#     another code after reading       the core is lost or only a part is stored; the host's log says so
#
# So this script checks everything before it reads. It sets the whole upload no deadline: that is up to the helper.
#
# Exit codes: 0 stored; 64 wrong arguments; 69 the image lacks a program; 71 no process could be started; 73 the directory is
# missing, not writable, or has a file of this name. With these codes it has read nothing, except for a 71 that comes late. 74:
# the core could not be compressed, sent or written. 75: the store is away: it does not answer in time, refuses the connection,
# or says that it has an error of its own (5xx). Each failure is one line on stderr:
# uploader.sh: OBJECT: WHAT HAPPENED: WHAT TO DO.

# Without -f the shell could expand the words of a client's message to names of files.
set -uf
umask 077
# The environment is that of the faulting process. Its PATH may be unset, or name only the directories of its own programs.
command -v uname >/dev/null 2>&1 || PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Bytes, not characters: names may be in any encoding. And the messages of the clients in one language.
LC_ALL=C
export PATH LC_ALL

usage='usage: uploader.sh [DESTINATION] [PID UID GID] <core'

# Where no process can be started, tr and $(...) do not work either. So each function that makes a message uses only what the
# shell itself can do, and puts its result into a variable with the name of the function.

# plain TEXT: TEXT as one line without control characters. Of a long one only the end stays: there a client says what went
# wrong.
plain() {
    rest=$1 plain=
    # Only a client says that much, and by then processes have been started. Shells are slow with long texts.
    [ "${#rest}" -le 5000 ] || rest=$(printf '%s' "$rest" | tail -c 400)
    while :; do
        piece=${rest%%[[:cntrl:]]*}
        plain="$plain $piece" rest=${rest#"$piece"}
        [ -n "$rest" ] || break
        rest=${rest#?}
    done
    # shellcheck disable=SC2086 # several spaces become one
    set -- $plain
    plain=$*
    while [ "${#plain}" -gt 400 ]; do
        plain=${plain#?}
    done
}

# blame PROGRAM STATUS SAID: what a program that failed has said, or else its exit status. Most programs begin with their name.
blame() {
    plain "$3"
    plain=${plain#"$1: "}
    # What rclone says before these words is only about its own steps.
    plain=${plain##*last error was: }
    plain=${plain##*api error }
    blame="$1: ${plain:-ended with status $2}"
}

# say OBJECT WHAT REMEDY
say() {
    plain "$1"
    line="uploader.sh: $plain"
    plain "$2"
    line="$line: $plain"
    plain "$3"
    printf '%s: %s\n' "$line" "$plain" >&2
}

# fail CODE OBJECT WHAT REMEDY
fail() {
    told=yes
    say "$2" "$3" "$4"
    exit "$1"
}

# limits: why no process can be started, with the numbers that /proc and /sys show.
limits() {
    limits='the limit of processes of the user'
    if [ -r /proc/self/limits ]; then
        while read -r first second soft rest; do
            [ "$first $second" != 'Max processes' ] || limits="$limits ($soft)"
        done </proc/self/limits
    fi
    limits="$limits or of the container"
    for group in /sys/fs/cgroup /sys/fs/cgroup/pids; do
        if [ -r "$group/pids.max" ] && [ -r "$group/pids.current" ]; then
            read -r most <"$group/pids.max"
            read -r now <"$group/pids.current"
            limits="$limits ($most, $now in use)"
            break
        fi
    done
    limits="$limits is reached, or the memory used up"
}

# ended STATUS: runs at the end, even if the shell ends because it cannot fork.
ended() {
    [ -z "$muted" ] || exec 2>&9
    case $told$1 in
    yes* | 0 | 129 | 130 | 143) ;; # bash comes here, too, when a signal ends it
    *)
        limits
        say "${temporary:-cannot start a process}" "${temporary:+cannot start a process: }$limits" \
            'raise it (docker run --ulimit nproc, --pids-limit, --memory)'
        exit 71
        ;;
    esac
    [ -z "$temporary" ] || rm -f "$temporary"
    exit "$1"
}

# mute, unmute: what the shell itself says goes nowhere meanwhile; ended unmutes, too.
mute() {
    muted=yes
    exec 9>&2 2>/dev/null
}

unmute() {
    exec 2>&9 9>&-
    muted=''
}

# processes N: whether N more processes can exist at the same time.
processes() {
    [ "$1" -eq 0 ] || (processes "$(($1 - 1))" && :)
}

# part VALUE LENGTH: VALUE as a part of a name. The container chooses host name and program, so nothing is left in them that
# could be a directory, an option or a hidden file.
part() {
    rest=$1 part=
    [ "${#rest}" -le 1000 ] || rest=$(printf "%.1000s" "$rest")
    while [ "${#part}" -le "$2" ]; do
        part=$part${rest%%[!A-Za-z0-9._-]*}
        case $rest in
        *[!A-Za-z0-9._-]*) part=${part}_ rest=${rest#*[!A-Za-z0-9._-]} ;;
        *) break ;;
        esac
    done
    while [ "${#part}" -gt "$2" ]; do
        part=${part%?}
    done
    case $part in
    '') part=unknown ;;
    [.-]*) part=_${part#?} ;;
    esac
}

# need PROGRAM...: fails, before the core is read, if the image lacks one of them.
need() {
    for program; do
        command -v "$program" >/dev/null 2>&1 ||
            fail 69 "$object" "no $program in PATH=$PATH" "install $program in the image"
    done
}

compress() {
    # The faulting process waits until its core is read, so the fastest level.
    case $compressor in
    zstd) zstd -q -c -1 ;;
    gzip) gzip -c -1 ;;
    *) cat ;;
    esac
}

# An upload is `compressing | sending CLIENT... | judging`, with a second pipe, fd 3, that carries what the first two report to
# the third. POSIX sh has no pipefail, and an exit code would come too late anyway: a client that sees the end of its input
# makes a complete object of it. So if the compressor fails, compressing keeps the pipe to the client open until judging, which
# hears of the failure first, has stopped the client. The sleep that it waits for is started at the beginning: later there may
# be no process left.
compressing() {
    # Who gives the core ends the whole process group by SIGTERM where the core is not whole. The compressor must not be the
    # first to end: the client would see the end of its input. SIGKILL ends the compressor later.
    trap '' TERM
    # Longer than the longest time that the helper gives, 86400 seconds; judging ends it.
    sleep 100000 >/dev/null 2>&1 3>&- &
    holder=$!
    echo "holder $holder" >&3
    exec 4>&1 # stdout inside of $(...) is another one
    if said=$(compress 2>&1 >&4 3>&- 4>&-); then
        echo "compressed" >&3
    else
        status=$?
        blame "$compressor" "$status" "$said"
        printf 'broken %s %s\n' "$status" "$blame" >&3
        wait "$holder" 2>/dev/null
    fi
}

sending() {
    exec 5<&0 # a command in the background gets /dev/null for fd 0
    said=$(
        "$@" <&5 2>&1 >/dev/null 3>&- 5<&- &
        echo "client $!" >&3
        wait "$!" 2>/dev/null # some shells say "Terminated" here
        status=$?
        # Not after $(...), which ends no sooner than the last process that a client has left behind.
        echo "gone" >&3
        exit "$status"
    )
    status=$?
    # Sent before this end of the pipe closes, so that judging never hears first of a compressor that dies of a broken pipe.
    blame "$1" "$status" "$said"
    printf 'sent %s %s\n' "$status" "$blame" >&3
}

judging() {
    holder='' compressed='' broken='' client='' gone='' sent='' culprit=''
    while read -r event number text; do
        case $event in
        holder) holder=$number ;;
        compressed) compressed=0 ;;
        broken) broken=yes culprit=${culprit:-$text} ;;
        client) client=$number ;;
        gone) gone=yes ;;
        sent)
            sent=$number
            [ "$sent" -eq 0 ] || culprit=${culprit:-$text}
            ;;
        esac
        if [ -n "$broken" ] && [ -n "$gone$sent" ]; then
            kill -KILL "$holder" 2>/dev/null
        elif [ -n "$broken" ] && [ -n "$client" ]; then
            kill "$client" 2>/dev/null
        fi
    done
    [ -z "$holder" ] || kill -KILL "$holder" 2>/dev/null
    [ "$compressed$sent" = 00 ] || lose "${culprit:-a part of the upload was killed}"
}

# lose WHAT: fails because the core is not stored, and adds the remedy that fits. In most cases the core was read by then.
lose() {
    code=74
    case $1 in
    *NoSuchBucket* | *'bucket does not exist'*)
        remedy="create the bucket or correct the destination" ;;
    *InvalidAccessKeyId* | *SignatureDoesNotMatch* | *AccessDenied* | *Token* | *redential* | *Forbidden* | *'ode: 403'* | *'(403)'*)
        remedy="check the container's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may write there" ;;
    *refused* | *'no such host'* | *'onnect to the endpoint'* | *imeout* | *'timed out'* | *unreachable* | *' EOF' | *'reset by peer'*)
        code=75 remedy="check the container's AWS_ENDPOINT_URL and network" ;;
    *'ode: 5'[0-9][0-9]* | *\(5[0-9][0-9]\)* | *Internal*Error* | *erviceUnavailable* | *SlowDown* | *BadGateway*)
        code=75 remedy="look at the S3 server, or try again later" ;;
    *'o space left'* | *'quota'*)
        remedy="make room there" ;;
    *)
        remedy="run the container's client by hand, or see the container's limits of processes, memory and disk" ;;
    esac
    fail "$code" "$object" "$1" "$remedy"
}

# Settings as environment defaults, so that those of the container take precedence.
upload() {
    endpoint=${AWS_ENDPOINT_URL_S3:-${AWS_ENDPOINT_URL-}}
    region=${AWS_REGION:-${AWS_DEFAULT_REGION-}}
    if command -v rclone >/dev/null 2>&1; then
        : "${RCLONE_S3_ENDPOINT:=$endpoint}" "${RCLONE_S3_REGION:=$region}"
        if [ -n "$RCLONE_S3_ENDPOINT" ]; then
            : "${RCLONE_S3_PROVIDER:=Other}"
        else
            : "${RCLONE_S3_PROVIDER:=AWS}"
        fi
        : "${RCLONE_S3_ENV_AUTH:=true}" "${RCLONE_S3_CHUNK_SIZE:=16M}" "${RCLONE_S3_UPLOAD_CONCURRENCY:=2}"
        # A missing bucket is a mistake, so the client must not create it. And it needs no rights to look around.
        : "${RCLONE_S3_NO_CHECK_BUCKET:=true}" "${RCLONE_S3_NO_HEAD_OBJECT:=true}"
        export RCLONE_S3_ENDPOINT RCLONE_S3_REGION RCLONE_S3_PROVIDER RCLONE_S3_ENV_AUTH RCLONE_S3_CHUNK_SIZE \
            RCLONE_S3_UPLOAD_CONCURRENCY RCLONE_S3_NO_CHECK_BUCKET RCLONE_S3_NO_HEAD_OBJECT
        # A second try of the whole upload is impossible, since the core comes once. The timeouts are those of one request:
        # without them, the client would never try a request again that hangs.
        set -- rclone rcat --config= --retries=1 --low-level-retries=3 --contimeout=10s --timeout=60s --stats=0 \
            --log-level=ERROR --log-format= ":s3:${object#s3://}"
    elif command -v aws >/dev/null 2>&1; then
        : "${AWS_MAX_ATTEMPTS:=3}"
        export AWS_MAX_ATTEMPTS
        # aws before version 2 knows the second name only.
        [ -z "$region" ] || export AWS_DEFAULT_REGION="$region"
        # aws derives the size of the parts from the size that it expects.
        set -- aws s3 cp - "$object" --only-show-errors --expected-size 160000000000 \
            --cli-connect-timeout 10 --cli-read-timeout 60
        if [ -n "$endpoint" ]; then
            # Versions from before 2023 do not know AWS_ENDPOINT_URL, and S3 servers other than Amazon's do not know the new
            # checksums.
            : "${AWS_REQUEST_CHECKSUM_CALCULATION:=when_required}"
            export AWS_REQUEST_CHECKSUM_CALCULATION
            set -- "$@" --endpoint-url "$endpoint"
        fi
    else
        fail 69 "$object" "no S3 client in PATH=$PATH" "install rclone or aws in the image"
    fi
    need "$compressor" sleep
    { compressing | sending "$@"; } 3>&1 >/dev/null | judging || {
        status=$?
        told=yes # by judging
        [ "$status" -eq 75 ] || status=74
        exit "$status"
    }
}

# place NAME: gives the core this name, unless there is a file of that name. Other users who may write in the directory can
# create one at any moment.
place() {
    # Never replaces anything, follows no symbolic link and, by -T, goes into no directory.
    ln -T "$temporary" "$1" 2>/dev/null && return 0 # Without the 0, bash in a trap returns what was before the trap.
    # An older busybox has no -T, some file systems have no hard links.
    if [ -e "$1" ] || [ -L "$1" ]; then
        return 1
    fi
    ln "$temporary" "$1" 2>/dev/null ||
        { mv -n "$temporary" "$1" 2>/dev/null && [ ! -e "$temporary" ]; } ||
        return 1
    [ -f "$1" ] && [ ! -L "$1" ]
}

# name_it ENDING: gives the core the name that $object says. The core cannot be read again: if its name was taken meanwhile, it
# gets another one with the same ENDING.
name_it() {
    place "$object" && return 0
    taken=$object object=${object%"$1"}.${temporary##*.}$1
    place "$object" || fail 74 "$taken" "cannot rename $temporary" "see who else writes there"
}

# keep_part: ends the script where the whole core does not come, as SIGTERM says, and keeps what has come under a name that
# says so. The compressor has got the same signal.
keep_part() {
    trap '' TERM
    [ -z "$muted" ] || unmute
    [ -s "$temporary" ] || fail 74 "$object" "ended by SIGTERM before a part of the core was written" "see the host's log"
    object=${object%"$cut"}.truncated
    name_it ".core$suffix.truncated"
    fail 74 "$object" "ended by SIGTERM, so this is a part of the core" "see the host's log"
}

# Under a temporary name first, so that nobody ever reads half a core. mktemp creates it (O_EXCL, mode 0600) under a name
# that nobody can know before.
write() {
    [ -d "$directory/" ] ||
        fail 73 "$object" "no directory $directory/" "create it in the image with mode 1777, or mount a volume there"
    if [ -e "$object" ] || [ -L "$object" ]; then
        fail 73 "$object" "exists already" "nothing to do if it is of the same crash; else see who else writes there"
    fi
    need "$compressor" mktemp ln mv rm
    case $(ls -ld "$directory/" 2>/dev/null) in
    d???????w[!tT]*)
        say "$directory/" "everybody can delete and replace the cores of others there" "chmod +t $directory/" ;;
    esac
    temporary=$(mktemp "$directory/.${object##*/}.XXXXXX" 2>/dev/null) ||
        fail 73 "$object" "cannot create a file in $directory/" \
            "let every user write there (mode 1777), make room, or mount a volume"
    trap 'told=yes; exit 74' HUP INT
    trap keep_part TERM
    mute # Some shells say "Terminated" here.
    said=$(compress 2>&1 >"$temporary" 9>&-) || {
        status=$?
        unmute
        blame "$compressor" "$status" "$said"
        lose "$blame"
    }
    trap '' TERM # From here on it is whole.
    unmute
    name_it ".core$suffix$cut"
}

# What the function ended needs to know.
told='' muted='' temporary=''
trap 'ended "$?"' EXIT

case ${1-} in
--help | -h)
    echo "$usage"
    echo "DESTINATION: s3://BUCKET/PREFIX/, file:///DIRECTORY or /DIRECTORY; without it CORE_DESTINATION of the environment"
    told=yes
    exit 0
    ;;
esac
case $# in
0 | 1) destination=${1-} ;;
3) destination='' ;;
4)
    destination=$1
    shift
    ;;
*) fail 64 "$*" "wrong number of arguments" "$usage" ;;
esac
[ $# -eq 3 ] || set -- '' '' ''
case $1$2$3 in
*[!0-9]*) fail 64 "$*" "PID, UID and GID are not numbers" "$usage" ;;
esac
destination=${destination:-${CORE_DESTINATION-}}
case $destination in
s3:///* | s3://) fail 64 "$destination" "no bucket" "say s3://BUCKET/PREFIX/" ;;
s3://*) ;;
file:///*) destination=${destination#file://} ;;
/*) ;;
'') fail 64 core "no destination" "set CORE_DESTINATION in the container, or give one as the first argument" ;;
*) fail 64 "$destination" "not a destination" "say s3://BUCKET/PREFIX/, file:///DIRECTORY or /DIRECTORY" ;;
esac
[ ! -t 0 ] || fail 64 "$destination" "no core: stdin is a terminal" "give it on stdin: uploader.sh $destination <core"

# As many processes as exist at the same time. A shell that cannot fork ends, with a message of its own, which is hidden: ended
# says more. bash tries for 15 seconds before it ends.
case $destination in
s3://*) number=9 ;;
*) number=3 ;;
esac
mute
processes "$number" || exit 71
unmute

if command -v zstd >/dev/null 2>&1; then
    compressor=zstd suffix=.zst
elif command -v gzip >/dev/null 2>&1; then
    compressor=gzip suffix=.gz
else
    compressor=cat suffix=
fi

# Known before the core is read, where the host has kept the core: then a part may be stored, under a name that says so.
cut=
[ "${CORE_TRUNCATED-}" != 1 ] || cut=.truncated

directory=$destination
while [ "$directory" != "${directory%/}" ]; do
    directory=${directory%/}
done
if [ -n "${CORE_KEY-}" ]; then
    # The helper's, unless an older helper has left a variable of that name to the container.
    part "$CORE_KEY" 200
    object=$part host=
else
    part "${CORE_HOSTNAME:-$(uname -n)}" 64
    host=$part
    program=${CORE_EXE-}
    part "${CORE_COMM:-${program##*/}}" 64
    object=$part
    for value in "${1:-${CORE_PID-}}" "${2:-${CORE_UID-}}" "${3:-${CORE_GID-}}" "${CORE_TIME:-$(date +%s)}"; do
        part "$value" 20
        object=$object.$part
    done
fi

case $destination in
s3://*)
    object=$directory/${host:+$host/}$object.core$suffix$cut
    upload
    ;;
*)
    object=$directory/${host:+$host.}$object.core$suffix$cut
    write
    ;;
esac
told=yes
printf 'uploader.sh: %s\n' "$object" >&2
