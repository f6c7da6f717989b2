#!/bin/sh
# uploader.sh: take the core of a crashed process, on stdin, to where its container wants it.
#
#     uploader.sh [DESTINATION] [PID UID GID] <core
#
# DESTINATION   s3://BUCKET/PREFIX/, file:///DIRECTORY or an absolute directory. Without it (or when it is empty),
#               CORE_DESTINATION of the environment counts, so each container may choose its own.
# PID UID GID   of the crashed process; without them CORE_PID, CORE_UID and CORE_GID count.
#
# The core becomes DESTINATION/<host name>/<program>.<pid>.<uid>.<gid>.<time>.core, compressed (.zst, .gz) where the image
# has zstd or gzip. The names come from CORE_HOSTNAME, CORE_COMM (else the last part of CORE_EXE) and CORE_TIME, which
# docker_core_helper sets. On success the object's full name is one line on stderr: the host logs it.
#
# s3:// goes through rclone, else aws, whichever the image has. Both take the endpoint, the region and the credentials from
# AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and so on; rclone also from
# RCLONE_S3_*. Neither needs a configuration file, a home directory or a writable disk. The bucket must exist; the rights
# needed are s3:PutObject and, for rclone, which looks at the object afterwards, s3:GetObject. The core is streamed in parts
# of 16 MiB, of which S3 allows 10,000: at most 156 GiB after compression. An upload that is killed can leave parts, but no
# object; a lifecycle rule of the bucket (AbortIncompleteMultipartUpload) removes them.
#
# Exit codes: 0 delivered; 64 wrong arguments; 69 the image has no S3 client; 73 the directory is missing, not writable, or
# has this core already; 74 the core could not be compressed, sent or written. Each failure is one line on stderr:
# uploader.sh: OBJECT: WHAT HAPPENED: WHAT TO DO.

set -u
umask 077
# The environment is that of the process that crashed. Its PATH may be unset or hold its own programs only.
command -v uname >/dev/null 2>&1 || PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Bytes, not characters: names may be in any encoding. And the messages of the clients in one language.
LC_ALL=C
export PATH LC_ALL

usage() {
    echo "usage: uploader.sh [DESTINATION] [PID UID GID] <core"
    echo "DESTINATION: s3://BUCKET/PREFIX/, file:///DIRECTORY or /DIRECTORY; without it CORE_DESTINATION of the environment"
}

# one_line TEXT: without control characters, and its end rather than its beginning: there a client says what went wrong.
one_line() {
    printf '%s' "$1" | tr '\000-\037\177' ' ' | tr -s ' ' | tail -c 400
}

# blame PROGRAM STATUS SAID: what a program that failed has said, or else its exit status. Most say their own name first.
blame() {
    said=$(one_line "$3")
    said=${said#"$1: "}
    # What rclone puts before these words is its own way through the upload.
    said=${said##*last error was: }
    said=${said##*api error }
    printf '%s: %s' "$1" "${said:-ended with status $2}"
}

# fail CODE OBJECT WHAT REMEDY
fail() {
    printf 'uploader.sh: %s: %s: %s\n' "$(one_line "$2")" "$3" "$4" >&2
    exit "$1"
}

# part VALUE LENGTH: VALUE as a part of a key. Host name and program are chosen by whoever runs in the container, so nothing
# is left of them that could be a directory, an option or a hidden file.
part() {
    value=$(printf '%s' "$1" | tr -c 'A-Za-z0-9._-' '_' | cut -c "1-$2")
    case $value in
    '') value=unknown ;;
    [.-]*) value=_${value#?} ;;
    esac
    printf '%s' "$value"
}

compress() {
    # The crashed process waits until its core is read, so the fastest level.
    case $compressor in
    zstd) zstd -q -c -1 ;;
    gzip) gzip -c -1 ;;
    *) cat ;;
    esac
}

# An upload is `compressing | sending CLIENT... | judging`, with a second pipe, fd 3, that carries what the first two report
# to the third. POSIX sh has no pipefail, and an exit code would come too late anyway: a client that sees the end of its
# input makes a complete object of it. So a failed compressor keeps the pipe to the client open until judging, which hears
# of the failure first, has stopped the client.
compressing() {
    exec 4>&1 # stdout inside of $(...) is another one
    if said=$(compress 2>&1 >&4 3>&- 4>&-); then
        echo "compressed" >&3
        return
    else
        said=$(blame "$compressor" "$?" "$said")
    fi
    # Longer than the host lets anybody live; judging ends it.
    sleep 600 2>/dev/null 3>&- &
    printf 'broken %s %s\n' "$!" "$said" >&3
    wait "$!" 2>/dev/null
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
    # Said before this end of the pipe closes, so a compressor that dies of a broken pipe is never heard of first.
    printf 'sent %s %s\n' "$status" "$(blame "$1" "$status" "$said")" >&3
}

judging() {
    compressed='' client='' gone='' sent='' holder='' culprit=''
    while read -r event number text; do
        case $event in
        compressed) compressed=0 ;;
        broken) holder=$number culprit=${culprit:-$text} ;;
        client) client=$number ;;
        gone) gone=yes ;;
        sent)
            sent=$number
            [ "$sent" -eq 0 ] || culprit=${culprit:-$text}
            ;;
        esac
        if [ -n "$holder" ] && [ -n "$gone" ]; then
            kill "$holder" 2>/dev/null
        elif [ -n "$holder" ] && [ -n "$client" ]; then
            kill "$client" 2>/dev/null
        fi
    done
    [ "$compressed$sent" = 00 ] || fail 74 "$object" "${culprit:-a part of the upload was killed}" "$(remedy "$culprit")"
}

remedy() {
    case $1 in
    *NoSuchBucket* | *'bucket does not exist'*)
        echo "create the bucket or correct the destination" ;;
    *InvalidAccessKeyId* | *SignatureDoesNotMatch* | *AccessDenied* | *Token* | *redential* | *Forbidden* | *'ode: 403'* | *'(403)'*)
        echo "check the container's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may write there" ;;
    *refused* | *'no such host'* | *'onnect to the endpoint'* | *imeout* | *'timed out'* | *unreachable*)
        echo "check the container's AWS_ENDPOINT_URL and network" ;;
    *'o space left'* | *'quota'*)
        echo "make room there" ;;
    *)
        echo "run the container's client by hand, or see the memory and disk limits of the container" ;;
    esac
}

# Settings as environment defaults, so that those of the container go first.
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
        # A missing bucket is somebody's mistake, not ours to create; and the rights to look around are not needed.
        : "${RCLONE_S3_NO_CHECK_BUCKET:=true}" "${RCLONE_S3_NO_HEAD_OBJECT:=true}"
        export RCLONE_S3_ENDPOINT RCLONE_S3_REGION RCLONE_S3_PROVIDER RCLONE_S3_ENV_AUTH RCLONE_S3_CHUNK_SIZE \
            RCLONE_S3_UPLOAD_CONCURRENCY RCLONE_S3_NO_CHECK_BUCKET RCLONE_S3_NO_HEAD_OBJECT
        # A second try of the whole is impossible, since the core comes once.
        set -- rclone rcat --config= --retries=1 --low-level-retries=3 --contimeout=10s --timeout=60s --stats=0 \
            --log-level=ERROR --log-format= ":s3:${object#s3://}"
    elif command -v aws >/dev/null 2>&1; then
        : "${AWS_MAX_ATTEMPTS:=3}"
        export AWS_MAX_ATTEMPTS
        # aws before version 2 knows the second name only.
        [ -z "$region" ] || export AWS_DEFAULT_REGION="$region"
        # Of the size that it expects aws makes the size of the parts.
        set -- aws s3 cp - "$object" --only-show-errors --expected-size 160000000000 \
            --cli-connect-timeout 10 --cli-read-timeout 60
        if [ -n "$endpoint" ]; then
            # Versions from before 2023 do not know AWS_ENDPOINT_URL; S3 servers other than Amazon's not the new checksums.
            : "${AWS_REQUEST_CHECKSUM_CALCULATION:=when_required}"
            export AWS_REQUEST_CHECKSUM_CALCULATION
            set -- "$@" --endpoint-url "$endpoint"
        fi
    else
        fail 69 "$object" "no S3 client in PATH=$PATH" "install rclone or aws in the image"
    fi
    { compressing | sending "$@"; } 3>&1 >/dev/null | judging || exit
}

# Under a temporary name first, so that nobody ever reads half a core. mktemp creates it (O_EXCL, mode 0600) under a name
# that nobody can know before.
write() {
    [ -d "$directory/" ] ||
        fail 73 "$object" "no directory $directory/" "create it in the image, or mount a volume there"
    # Processes of every user of the container must be able to put theirs in it, and none may remove another's: like /tmp.
    [ -d "${object%/*}" ] || mkdir -m 1777 "${object%/*}" 2>/dev/null
    if [ -e "$object" ] || [ -L "$object" ]; then
        fail 73 "$object" "exists already" "nothing to do if it is of the same crash"
    fi
    temporary=$(mktemp "${object%/*}/.${object##*/}.XXXXXX" 2>/dev/null) ||
        fail 73 "$object" "cannot create a file in ${object%/*}" "let uid $(id -u) write there, or mount a volume"
    trap 'rm -f "$temporary"' EXIT
    trap 'exit 74' HUP INT TERM
    said=$(compress 2>&1 >"$temporary") || {
        said=$(blame "$compressor" "$?" "$said")
        fail 74 "$object" "$said" "$(remedy "$said")"
    }
    # ln never replaces anything. mv is for file systems without hard links.
    ln "$temporary" "$object" 2>/dev/null ||
        { [ ! -e "$object" ] && mv "$temporary" "$object" 2>/dev/null; } ||
        fail 74 "$object" "cannot rename $temporary" "see who else writes there"
}

case ${1-} in
--help | -h)
    usage
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
*) fail 64 "$*" "wrong number of arguments" "$(usage | head -n 1)" ;;
esac
[ $# -eq 3 ] || set -- '' '' ''
case $1$2$3 in
*[!0-9]*) fail 64 "$*" "PID, UID and GID are not numbers" "$(usage | head -n 1)" ;;
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

if command -v zstd >/dev/null 2>&1; then
    compressor=zstd suffix=.zst
elif command -v gzip >/dev/null 2>&1; then
    compressor=gzip suffix=.gz
else
    compressor=cat suffix=
fi

directory=$destination
while [ "$directory" != "${directory%/}" ]; do
    directory=${directory%/}
done
program=${CORE_EXE-}
program=${CORE_COMM:-${program##*/}}
object=$directory/$(part "${CORE_HOSTNAME:-$(uname -n)}" 64)/$(part "$program" 64)
object=$object.$(part "${1:-${CORE_PID-}}" 20).$(part "${2:-${CORE_UID-}}" 20).$(part "${3:-${CORE_GID-}}" 20)
object=$object.$(part "${CORE_TIME:-$(date +%s)}" 20).core$suffix

case $destination in
s3://*) upload ;;
*) write ;;
esac
printf 'uploader.sh: %s\n' "$object" >&2
