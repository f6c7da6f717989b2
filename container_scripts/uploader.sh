#!/bin/sh
# uploader.sh: reads the core of a faulting process from stdin, and stores it where its container wants it.
#
#     uploader.sh [DESTINATION] [PID UID GID] <core
#     uploader.sh --dry-run [DESTINATION]     says where a core would go, and tries all that can be tried without one
#     uploader.sh --resend [DESTINATION]      sends what lies in CORE_SPOOL
#
# DESTINATION   s3://BUCKET/PREFIX/, gs://BUCKET/PREFIX/, azblob://CONTAINER/PREFIX/, rclone:REMOTE:PATH/ for any remote that
#               rclone is configured for, file:///DIRECTORY, or an absolute directory. If it is missing or empty,
#               CORE_DESTINATION in the environment counts, so each container may choose its own.
# PID UID GID   of the faulting process, for a name without CORE_KEY; without them CORE_PID, CORE_UID and CORE_GID count.
#
# The environment is that of the faulting process. What it lacks is taken from /etc/core-uploader.conf, if the user of that process
# may read that file: lines CORE_*=VALUE, AWS_*=VALUE or RCLONE_*=VALUE, of which nothing is executed.
#
# The core becomes DESTINATION/<CORE_KEY>.core, an object of the bucket or a file, and <CORE_KEY>.json beside it has all that is
# known of it. The script creates no directory and no bucket. It compresses the core (.zst, .gz) if the image has zstd or gzip.
# docker_core_helper makes CORE_KEY, a name that no other core has. An older one sets no CORE_KEY: then the core becomes
# <host name>/<program>.<pid>.<uid>.<gid>.<time>.core in a bucket, and <host name>.<program>.<pid>.<uid>.<gid>.<time>.core in a
# directory, of CORE_HOSTNAME, CORE_COMM (else the last part of CORE_EXE) and CORE_TIME. On success the script writes the full name
# to stderr as one line, which the host logs.
#
# For s3:// the script uses the first of rclone, aws, s3cmd and curl that the image has, for the other stores rclone. None needs
# a configuration file or a home directory; s3cmd and curl need a writable TMPDIR, where the core becomes a file before.
# docs/images.md says which settings and rights they need, how large a core may be, and how the files of a directory are protected
# from other users.
#
# The client tries again while the store is away, for about a third of CORE_TIMEOUT. CORE_SPOOL, a directory in the container, is
# for hosts that keep no cores: the core becomes a file there before it is sent. It stays if it cannot be sent, and is sent by the
# next crash of the same user or by --resend, the oldest first. The files of a user there take at most CORE_SPOOL_MAX MiB (1024 by
# default): the oldest are deleted.
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
# missing, not writable, or has a file of this name; 77 a file that a setting names cannot be read, or the client cannot use these
# credentials. With these codes it has read nothing, except for a 71 that comes late. 74: the core could not be compressed, sent or
# written. 75: the store is away: it does not answer in time, refuses the connection, or says that it has an error of its own (5xx) or
# too much to do (429).
# Each failure is one line on stderr: uploader.sh: OBJECT: WHAT HAPPENED: WHAT TO DO.

# Without -f the shell could expand the words of a client's message to names of files.
set -uf
umask 077
# The environment is that of the faulting process. Its PATH may be unset, or name only the directories of its own programs.
command -v uname >/dev/null 2>&1 || PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Bytes, not characters: names may be in any encoding. And the messages of the clients in one language.
LC_ALL=C
export PATH LC_ALL

usage='usage: uploader.sh [--dry-run | --resend] [DESTINATION] [PID UID GID] <core'
newline='
'

# Where no process can be started, tr and $(...) do not work either. So each function that makes a message uses only what the
# shell itself can do, and puts its result into a variable with the name of the function.

# plain TEXT [MOST]: TEXT as one line without control characters. Of a long one only the end stays: there a client says what went
# wrong.
plain() {
    rest=$1 most=${2:-400} plain=
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
    while [ "${#plain}" -gt "$most" ]; do
        plain=${plain#?}
    done
}

# blame PROGRAM STATUS SAID: what a program that failed has said, or else its exit status. Most programs begin with their name.
blame() {
    rest=$3
    case $1:$rest in
    # Azure's answer has long details after a line of dashes.
    *'RESPONSE '[45][0-9][0-9]*) rest=${rest##*RESPONSE } rest="RESPONSE ${rest%%----------*}" ;;
    # s3cmd does not know these answers, and tries again or ends with a traceback.
    s3cmd:*'HTTP request '*' HTTPS '*) rest=${rest#*HTTP request } rest="HTTP request ${rest%%HTTPS*}HTTPS" ;;
    # It asks to report the traceback after a line of this kind.
    s3cmd:*'!!!!!!!!'*'Problem: '*) problem=${rest#*Problem: } rest="${rest%%!!!!!!!!*} ${problem%%"$newline"*}" ;;
    esac
    plain "$rest" 380 # So that the name of the program stays.
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
    explained=yes
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
    case $explained$1 in
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

# mute, unmute: between the two, the shell's own messages are discarded; ended unmutes, too.
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

# settings FILE: takes from FILE what the environment lacks. The lines are read and never executed, and no message shows them:
# they may be secrets.
settings() {
    [ -e "$1" ] || return 0
    if [ ! -f "$1" ] || [ ! -r "$1" ]; then
        say "$1" "the user of the faulting process cannot read it" "let that user read it (chmod), or delete it"
        return
    fi
    file=$1 number=0
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1)) line=${line%[[:cntrl:]]} # Windows ends a line by two characters.
        name=${line%%=*} value=${line#*=}
        case $line in
        '' | \#*) continue ;;
        CORE_?*=* | AWS_?*=* | RCLONE_?*=*) ;;
        *) name= ;;
        esac
        case $name in
        '' | *[!A-Za-z0-9_]*)
            say "$file" "line $number is not CORE_*=VALUE, AWS_*=VALUE or RCLONE_*=VALUE" "correct it"
            continue
            ;;
        esac
        case $value in
        \"*\" | \'*\') value=${value#?} value=${value%?} ;;
        esac
        # The name has only letters, digits and _ by now.
        eval "[ -n \"\${$name:-}\" ] || export $name=\"\$value\""
    done <"$1"
}

# clean: the application's own environment must not reach zstd and the clients: with its libraries, its Python, its locale or
# its limits of memory they would not start, or do something else.
clean() {
    IFS=$newline
    for line in $(export -p); do
        name=${line%%=*} name=${name##* }
        case $name in
        *[!A-Za-z0-9_]* | [0-9]* | '') ;; # A further line of a value.
        LD_* | GLIBC_TUNABLES | MALLOC_* | PYTHON* | LC_* | LANG | LANGUAGE | LOCPATH | NLSPATH | OPENSSL_CONF | GOGC | \
            GOMEMLIMIT | GOMAXPROCS | GODEBUG | GOTRACEBACK | ZSTD_* | GZIP | ENV | BASH_ENV | CDPATH) unset "$name" ;;
        esac
    done
    unset IFS
    export LC_ALL=C
    if [ ! -r "${AWS_CONFIG_FILE:-${HOME-}/.aws/config}" ] &&
        [ ! -r "${AWS_SHARED_CREDENTIALS_FILE:-${HOME-}/.aws/credentials}" ]; then
        unset AWS_PROFILE AWS_DEFAULT_PROFILE
    fi
}

# room: how many MiB of memory the container has left, 9999 without a limit. The faulting process still has its own. What the
# kernel holds of files does not count, it can be freed.
room() {
    room=9999
    for group in /sys/fs/cgroup /sys/fs/cgroup/memory; do
        most=
        [ ! -r "$group/memory.max" ] || read -r most <"$group/memory.max"
        [ ! -r "$group/memory.limit_in_bytes" ] || read -r most <"$group/memory.limit_in_bytes"
        case $most in
        '' | max | ????????????????*) continue ;; # Version 1 has a number of 19 digits for no limit.
        esac
        used=0
        while read -r name value; do
            case $name in
            anon | shmem | total_rss | total_shmem) used=$((used + value)) ;;
            esac
        done <"$group/memory.stat"
        room=$(((most - used) / 1048576))
        return
    done
}

# runs PROGRAM: whether the image has it and it starts. Its libraries may be missing.
runs() {
    command -v "$1" >/dev/null 2>&1 || return
    compressor=$1
    said=$(compress </dev/null 2>&1 >/dev/null) && return
    blame "$1" "$?" "$said"
    say "$object" "$blame" "the core is stored without it: mend it, or remove it from the image"
    return 1
}

choose_compressor() {
    suffix=
    if [ -n "$few" ]; then
        compressor='cat'
        return
    fi
    first=zstd second=gzip
    [ "$room" -ge 48 ] || first=gzip second=zstd # zstd needs 12 MiB, gzip 1.
    if ! runs "$first" && ! runs "$second"; then
        compressor='cat'
    fi
    case $compressor in
    zstd) suffix=.zst ;;
    gzip) suffix=.gz ;;
    esac
}

compress() {
    # The faulting process waits until its core is read, so the fastest level.
    case $compressor in
    zstd) zstd -q -c -1 ;;
    gzip) gzip -c -1 ;;
    *) cat ;;
    esac
}

# readable NAME...: fails where the file that the setting NAME says cannot be read.
readable() {
    for name; do
        eval "path=\${$name:-}"
        [ -z "$path" ] || [ -r "$path" ] ||
            fail 77 "$object" "the user of the faulting process cannot read $name=$path" "let that user read it"
    done
}

# choose_client: sets $client and what it needs in its environment. These are defaults: settings of the container go before.
choose_client() {
    client=
    case $destination in
    s3://*) clients='rclone aws s3cmd curl' ;;
    *) clients=rclone ;;
    esac
    for name in $clients; do
        ! command -v "$name" >/dev/null 2>&1 || { client=$name && break; }
    done
    if [ -z "$client" ]; then
        [ "$clients" != rclone ] || need rclone
        fail 69 "$object" "no S3 client in PATH=$PATH" "install rclone or aws in the image"
    fi
    need sleep
    readable AWS_CA_BUNDLE
    [ -n "${AWS_ACCESS_KEY_ID-}" ] || readable AWS_WEB_IDENTITY_TOKEN_FILE AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE
    # Where the host keeps the core (CORE_SIZE), it also tries again, and the process need not wait. How long clients try, tests
    # have measured: 3, 5 and 7 tries of rclone are 5, 30 and 115 seconds.
    tries=3
    if [ -z "${CORE_SIZE-}" ]; then
        case ${CORE_TIMEOUT-} in
        *[!0-9]* | '' | ? | [1-5]?) ;;
        ?? | 1?? | 2[0-3]?) tries=5 ;;
        *) tries=7 ;;
        esac
    fi
    # What is a file before it is sent is sent again by this script.
    patience=$((1 << (tries - 1)))
    if spooled || [ "$client" = curl ] || [ "$client" = s3cmd ]; then
        by_file=yes tries=3
    fi
    case $destination in
    gs://*) keys='GOOGLE_APPLICATION_CREDENTIALS' address='network' ;;
    # Each try of this part of rclone is four, within 9 seconds.
    azblob://*)
        keys='RCLONE_AZUREBLOB_ACCOUNT and RCLONE_AZUREBLOB_KEY' address='network'
        tries=$((tries > 5 ? 5 : tries / 2))
        ;;
    rclone:*) keys='configuration of rclone' address='network' ;;
    esac
    endpoint=${AWS_ENDPOINT_URL_S3:-${AWS_ENDPOINT_URL-}}
    region=${AWS_REGION:-${AWS_DEFAULT_REGION-}}
    began=$(date +%s 2>/dev/null)
    "set_up_$client"
}

set_up_rclone() {
    set -a # What is set here is exported.
    part_size=16M at_once=2
    if [ "$room" -lt 192 ]; then
        part_size=5M at_once=1
        export GOGC=50 GOMEMLIMIT="$((room > 48 ? room / 2 : 24))MiB" GOMAXPROCS=2
        : "${RCLONE_USE_MMAP:=true}"
    fi
    case $destination in
    rclone:*) set +a && return ;; # What follows would go before the configuration of a remote.
    esac
    : "${RCLONE_S3_ENDPOINT:=$endpoint}" "${RCLONE_S3_REGION:=$region}" "${RCLONE_S3_ENV_AUTH:=true}"
    [ -z "${AWS_CA_BUNDLE-}" ] || : "${RCLONE_CA_CERT:=$AWS_CA_BUNDLE}"
    [ -z "$RCLONE_S3_ENDPOINT" ] || : "${RCLONE_S3_PROVIDER:=Other}"
    : "${RCLONE_S3_PROVIDER:=AWS}" "${RCLONE_S3_CHUNK_SIZE:=$part_size}" "${RCLONE_S3_UPLOAD_CONCURRENCY:=$at_once}"
    : "${RCLONE_AZUREBLOB_CHUNK_SIZE:=$part_size}" "${RCLONE_AZUREBLOB_UPLOAD_CONCURRENCY:=$at_once}" "${RCLONE_GCS_ENV_AUTH:=true}"
    # rclone takes no key if it is to look for one.
    [ -n "${RCLONE_AZUREBLOB_KEY-}${RCLONE_AZUREBLOB_SAS_URL-}${RCLONE_AZUREBLOB_CONNECTION_STRING-}" ] ||
        : "${RCLONE_AZUREBLOB_ENV_AUTH:=true}"
    # A missing bucket is a mistake, so the client must not create it. And it needs no rights to look around.
    : "${RCLONE_S3_NO_CHECK_BUCKET:=true}" "${RCLONE_S3_NO_HEAD_OBJECT:=true}" "${RCLONE_GCS_NO_CHECK_BUCKET:=true}"
    : "${RCLONE_AZUREBLOB_NO_CHECK_CONTAINER:=true}" "${RCLONE_GCS_BUCKET_POLICY_ONLY:=true}"
    set +a
    case $destination in
    gs://*) [ "$RCLONE_GCS_ENV_AUTH" != true ] || readable GOOGLE_APPLICATION_CREDENTIALS ;;
    azblob://*) [ "${RCLONE_AZUREBLOB_ENV_AUTH-}" != true ] || readable AZURE_FEDERATED_TOKEN_FILE ;;
    esac
}

set_up_aws() {
    : "${AWS_RETRY_MODE:=standard}" "${AWS_MAX_ATTEMPTS:=$((tries > 3 ? tries * 2 : 3))}"
    export AWS_RETRY_MODE AWS_MAX_ATTEMPTS
    # aws before version 2 knows the second name only.
    [ -z "$region" ] || export AWS_DEFAULT_REGION="$region"
    # S3 servers other than Amazon's do not know the new checksums.
    [ -z "$endpoint" ] || export AWS_REQUEST_CHECKSUM_CALCULATION="${AWS_REQUEST_CHECKSUM_CALCULATION:-when_required}"
}

set_up_s3cmd() {
    [ -n "${AWS_ACCESS_KEY_ID-}" ] ||
        [ -z "${AWS_CONTAINER_CREDENTIALS_RELATIVE_URI-}${AWS_CONTAINER_CREDENTIALS_FULL_URI-}" ] ||
        fail 77 "$object" "s3cmd takes no role of a task or a pod (AWS_CONTAINER_CREDENTIALS_*)" \
            "install rclone or aws in the image, or give the container AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    s3_host=${endpoint#*://} s3_host=${s3_host%/}
    : "${s3_host:=s3.${region:-us-east-1}.amazonaws.com}"
    [ "$room" -lt 192 ] && part_size=5 || part_size=16
}

set_up_curl() {
    case ${AWS_ACCESS_KEY_ID-}${AWS_SECRET_ACCESS_KEY-}${AWS_SESSION_TOKEN-} in
    '' | *[!!-~]* | *[\\\"]*)
        fail 77 "$object" "curl needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and takes no token and no role" \
            "give these to the container, or install rclone or aws in the image"
        ;;
    esac
    case $destination in
    *[!A-Za-z0-9._/:-]*) fail 64 "$object" "curl takes only A-Za-z0-9._/- there" "choose another prefix, or use rclone" ;;
    esac
    : "${region:=us-east-1}"
    : "${endpoint:=https://s3.$region.amazonaws.com}"
    [ -z "${AWS_CA_BUNDLE-}" ] || export CURL_CA_BUNDLE="$AWS_CA_BUNDLE"
}

# as_s3cmd WORD...: becomes s3cmd with these words. So it is for a subshell only.
as_s3cmd() {
    set -- --host="$s3_host" --host-bucket="$s3_host" --max-retries=1 --multipart-chunk-size-mb="$part_size" "$@"
    set -- ${AWS_CA_BUNDLE:+--ca-certs="$AWS_CA_BUNDLE"} ${region:+--region="$region"} "$@"
    case $endpoint in
    http://*) set -- --no-ssl "$@" ;;
    *) set -- --ssl "$@" ;;
    esac
    exec ${within:+timeout "$within"} s3cmd -c /dev/null "$@"
}

# call put OBJECT, call list OBJECT: becomes the client that makes OBJECT of its stdin, or looks whether there are objects whose
# names begin so. So it is for a subshell only.
call() {
    case $client in
    rclone)
        case $2 in
        s3://*) remote=:s3:${2#s3://} ;;
        gs://*) remote=:gcs:${2#gs://} ;;
        azblob://*) remote=:azureblob:${2#azblob://} ;;
        *) remote=${2#rclone:} ;;
        esac
        # A second try of the whole upload is impossible, since the core comes once; without a cutoff of 0, that is so for small
        # ones, too. The timeouts are those of one request: without them, the client would never try a request again that hangs.
        set -- "$1" "$remote" --retries=1 --low-level-retries="$tries" --contimeout=10s --timeout=60s --stats=0 \
            --log-level=ERROR --log-format=
        # A configuration in the image may need a password, or not be readable.
        case $remote in
        :*) set -- "$@" --config= ;;
        esac
        case $1 in
        put) shift && exec rclone rcat --streaming-upload-cutoff=0 "$@" ;;
        *) shift && exec rclone lsf --max-depth=1 "$@" ;;
        esac
        ;;
    aws)
        # Versions from before 2023 do not know AWS_ENDPOINT_URL.
        set -- "$1" "$2" --cli-connect-timeout 10 --cli-read-timeout 60 ${endpoint:+--endpoint-url "$endpoint"}
        case $1 in
        # aws derives the size of the parts from the size that it expects.
        put) shift && exec aws s3 cp - "$@" --only-show-errors --expected-size 160000000000 ;;
        *) bucket=${2#s3://} && shift 2 && exec aws s3api list-objects-v2 --max-items 1 --bucket "${bucket%%/*}" \
            --prefix "${bucket#*/}" "$@" ;;
        esac
        ;;
    s3cmd)
        case $1 in
        put) as_s3cmd put -q "${file:--}" "$2" ;;
        *) as_s3cmd ls -q "$2" ;;
        esac
        ;;
    curl) call_curl "$@" ;;
    esac
}

# ask put OBJECT, ask list OBJECT: has the client do that. Where it fails, $blame is what it said.
ask() {
    said=$(call "$@" 2>&1 >/dev/null) && return
    blame "$client" "$?" "$said"
    return 1
}

# The credentials go to curl by a pipe: all users can read the words of a command line. What the server says goes to stderr.
call_curl() {
    url=${2#s3://} digest=UNSIGNED-PAYLOAD
    case $1 in
    put)
        ! command -v sha256sum >/dev/null 2>&1 || digest=$(sha256sum <"$file")
        set -- --upload-file "$file"
        ;;
    *)
        url=${url%%/*}
        set -- --get
        ;;
    esac
    {
        printf 'user = "%s:%s"\n' "${AWS_ACCESS_KEY_ID-}" "${AWS_SECRET_ACCESS_KEY-}"
        [ -z "${AWS_SESSION_TOKEN-}" ] || printf 'header = "x-amz-security-token: %s"\n' "$AWS_SESSION_TOKEN"
        printf 'header = "x-amz-content-sha256: %s"\n' "${digest%% *}"
    } | curl -q -sS --config - --aws-sigv4 "aws:amz:$region:s3" --fail-with-body --connect-timeout 10 --speed-time 60 \
        "$@" "${endpoint%/}/$url" >&2
}

# An upload is `compressing | sending | judging`, with a second pipe, fd 3, that carries what the first two report to
# the third. POSIX sh has no pipefail, and an exit code would come too late anyway: a client that sees the end of its input
# makes a complete object of it. So if the compressor fails, compressing keeps the pipe to the client open until judging, which
# hears of the failure first, has stopped the client. The sleep that it waits for is started at the beginning: later there may
# be no process left.
compressing() {
    # The helper ends the whole process group by SIGTERM where the core is not whole. The compressor must not be the
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
        call put "$object" <&5 2>&1 >/dev/null 3>&- 5<&- &
        echo "client $!" >&3
        wait "$!" 2>/dev/null # some shells say "Terminated" here
        status=$?
        # Not after $(...), which ends no sooner than the last process that a client has left behind.
        echo "gone" >&3
        exit "$status"
    )
    status=$?
    # Sent before this end of the pipe closes, so that judging never hears first of a compressor that dies of a broken pipe.
    blame "$client" "$status" "$said"
    printf 'sent %s %s\n' "$status" "$blame" >&3
}

judging() {
    holder='' compressed='' broken='' sender='' gone='' sent='' culprit=''
    while read -r event number text; do
        case $event in
        holder) holder=$number ;;
        compressed) compressed=0 ;;
        broken) broken=yes culprit=${culprit:-$text} ;;
        client) sender=$number ;;
        gone) gone=yes ;;
        sent)
            sent=$number
            [ "$sent" -eq 0 ] || culprit=${culprit:-$text}
            ;;
        esac
        if [ -n "$broken" ] && [ -n "$gone$sent" ]; then
            kill -KILL "$holder" 2>/dev/null
        elif [ -n "$broken" ] && [ -n "$sender" ]; then
            kill "$sender" 2>/dev/null
        fi
    done
    [ -z "$holder" ] || kill -KILL "$holder" 2>/dev/null
    [ "$compressed$sent" = 00 ] || lose "${culprit:-a part of the upload was killed}"
}

# remedy WHAT: what to do about WHAT a client has said, and the exit code that fits.
remedy() {
    code=74
    case $endpoint$1 in
    *'HTTP response to HTTPS'* | *'HTTP request to an HTTPS'* | *'HTTP request was sent to HTTPS'* | *WRONG_VERSION* | \
        *'wrong version'* | *'record layer'* | *'HTTP/0.9'*)
        remedy="AWS_ENDPOINT_URL says https:// for a server that speaks http, or the reverse" ;;
    http:*'before we received a valid response'* | http:*'ode: 400'*'reset by peer'*)
        code=75 remedy="look whether the server speaks https, while AWS_ENDPOINT_URL says http://; else try again later" ;;
    *x509* | *CERTIFICATE_VERIFY* | *'ertificate verif'* | *'SSL certificate'* | *'CA cert'*)
        remedy="let AWS_CA_BUNDLE name the certificate of the server's CA, or install ca-certificates in the image" ;;
    *NoSuchBucket* | *'bucket does not exist'* | *ContainerNotFound* | *'irectory not found'* | *'Error 404'*)
        remedy="create the bucket or correct the destination"
        # The bucket was there: the store does not know any more what it was sent, as after an error of its own.
        [ -z "$answered" ] || code=75 remedy="look at the store, or try again later" ;;
    *IMDS*imeout*)
        remedy="give the container credentials, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role; that of an EC2 instance \
needs an HttpPutResponseHopLimit of 2 there" ;;
    *'nable to locate credentials'* | *'no EC2 IMDS role'* | *NoCredential* | *'static credentials are empty'* | \
        *'onfiguration file not available'* | *'could not find default credentials'* | *DefaultAzureCredential*)
        remedy="give the container credentials, such as $keys, or a role" ;;
    *'error STS'*'no such host'* | *'error STS'*refused* | *'error STS'*imeout* | *'error STS'*'eadline exceeded'* | \
        *'load credentials'*refused* | *'load credentials'*imeout* | *'load credentials'*'eadline exceeded'* | \
        *'container metadata'*'onnect to the endpoint'* | *'container metadata'*imeout* | *'container metadata'*'imed out'*)
        code=75 remedy="check the container's network: the service that gives it credentials does not answer" ;;
    *InvalidAccessKeyId* | *SignatureDoesNotMatch* | *AccessDenied* | *Token* | *redential* | *orbidden* | *'ode: 403'* | \
        *'(403)'* | *'rror: 403'* | *'esponse code 403'* | *'RESPONSE 403'* | *AuthenticationFailed* | *AuthorizationFailure*)
        remedy="check the container's $keys, and that they may write there" ;;
    *refused* | *'no such host'* | *'onnect to the endpoint'* | *imeout* | *imed' out'* | *unreachable* | *' EOF' | \
        *'reset by peer'* | *'resolve host'* | *'not known'* | *'failure in name resolution'* | *'onnection was closed'* | \
        *'onnect to server'* | *'ailed to connect'* | *'roken pipe'* | *'mpty reply'* | *'losed network connection'* | \
        *'losed idle connection'* | *'onnection lost'* | *'onnection broken'* | *'onnection aborted'* | *'o route to host'* | \
        *GOAWAY* | *'server misbehaving'* | *'etwork is down'*)
        code=75 remedy="check the container's $address" ;;
    *'ode: 5'[0-9][0-9]* | *\(5[0-9][0-9]\)* | *'rror: 5'[0-9][0-9]* | *'rror 5'[0-9][0-9]:* | *'esponse code 5'[0-9][0-9]* | \
        *'RESPONSE 5'[0-9][0-9]* | *Internal*Error* | *erviceUnavailable* | *SlowDown* | \
        *BadGateway* | *'try again later'* | *'failed too many times'* | *NoSuchUpload* | *'ode: 429'* | *'(429)'* | *'rror: 429'* | \
        *'rror 429'* | *'esponse code 429'* | *'RESPONSE 429'* | *TooManyRequests* | *ateLimitExceeded*)
        code=75 remedy="look at the store, or try again later" ;;
    *'o space left'* | *'quota'* | *'ile too large'*)
        remedy="make room there" ;;
    *)
        remedy="run the container's client by hand, or see the container's limits of processes, memory and disk" ;;
    esac
}

# lose WHAT: fails because the core is not stored, and adds the remedy that fits. In most cases the core was read by then.
lose() {
    remedy "$1"
    fail "$code" "$object" "$1" "$remedy"
}

# quote TEXT: TEXT as a string of JSON. A byte that is no printable character of ASCII becomes _.
quote() {
    rest=$1 quote=
    [ "${#rest}" -le 8000 ] || rest=$(printf '%.8000s' "$rest")
    while :; do
        piece=${rest%%[!A-Za-z0-9._/:@-]*} rest=${rest#"$piece"} quote=$quote$piece
        case $rest in
        '') break ;;
        \"*) quote=$quote\\\" ;;
        \\*) quote=$quote\\\\ ;;
        [\ -~]*) piece=${rest#?} quote=$quote${rest%"$piece"} ;;
        *) quote=${quote}_ ;;
        esac
        rest=${rest#?}
    done
    quote=\"$quote\"
}

# describe NAME: all that is known of the core that is stored under that NAME, as JSON.
describe() {
    facts=
    for fact in PID HOST_PID UID GID SIGNAL SIGNAL_NAME TIME LIMIT EXE COMM HOSTNAME NODE CONTAINER_ID CONTAINER_NAME IMAGE \
        POD_NAME POD_NAMESPACE POD_UID KEY SIZE; do
        eval "value=\${CORE_$fact-}"
        quote "$value"
        facts="$facts${facts:+, }\"CORE_$fact\": $quote"
    done
    quote "$1"
    describe="{\"core\": $quote"
    case ${CORE_SHA256-} in
    '' | *[!0-9a-f]*) quote=null ;;
    *) quote=\"$CORE_SHA256\" ;;
    esac
    describe="$describe, \"sha256\": $quote, \"build_ids\": "
    case ${CORE_BUILD_IDS-} in
    \{*\}) describe=$describe$CORE_BUILD_IDS ;;
    *) describe=${describe}null ;;
    esac
    case $1 in
    *.truncated) quote=true ;;
    *) quote=false ;;
    esac
    describe="$describe, \"truncated\": $quote, \"facts\": {$facts}}"
}

# Beside the core; without these facts the core is still a core, so a failure is only reported.
upload_facts() {
    describe "${object##*/}"
    if [ -n "$by_file" ] && ! file_of_facts; then
        say "${object%.core*}.json" "cannot be written to $directory/" "make room there"
        return
    fi
    file=$temporary
    printf '%s\n' "$describe" | {
        ask put "${object%.core*}.json" || {
            remedy "$blame"
            say "${object%.core*}.json" "$blame" "$remedy"
        }
    }
}

# From stdin to the bucket.
stream() {
    if [ -n "$few" ]; then
        ask put "$object" || lose "$blame" # One process more than the client.
        return
    fi
    { compressing | sending; } 3>&1 >/dev/null | judging || {
        status=$?
        explained=yes # by judging
        [ "$status" -eq 75 ] || status=74
        exit "$status"
    }
}

# persist VERB OBJECT FILE: asks that with FILE as stdin, with longer and longer pauses while the store is away; or fails.
persist() {
    pause=1 blame="$3 cannot be read"
    until ask "$1" "$2" <"$3"; do
        remedy "$blame"
        [ "$code" -eq 75 ] && [ "$pause" -lt "$patience" ] || return
        sleep "$pause"
        pause=$((pause * 2))
    done
}

# answers: waits until the store answers, also if it refuses; or fails. rclone asks Google Cloud Storage only once to begin.
answers() {
    if persist list "$object" /dev/null; then
        answered=yes
    elif [ "$code" -eq 75 ]; then
        lose "$blame"
    fi
}

# send FILE OBJECT, or fails. A file can be sent again if its store is away.
send() {
    file=$1 object=$2
    persist put "$object" "$file"
}

# owned FILE: whether that is a file of this user. Those of others may be links to anything, or forged.
owned() {
    [ -f "$1" ] && [ ! -L "$1" ] && [ -O "$1" ]
}

# waits NAME: whether that file of the spool is a core of this user.
waits() {
    case $1 in
    .* | *[!A-Za-z0-9._-]*) return 1 ;;
    *.core | *.core.*) owned "$spool/$1" ;;
    *) return 1 ;;
    esac
}

# flush: sends what waits in the spool, the oldest first, and among them the core that has just come.
flush() {
    # shellcheck disable=SC2045 # all names that count are plain
    for waiting in $(ls -rt "$spool"); do
        waits "$waiting" || continue
        facts=${waiting%.core*}.json
        if ! send "$spool/$waiting" "$base$waiting" || { owned "$spool/$facts" && ! send "$spool/$facts" "$base$facts"; }; then
            # Another crash of the same user may have sent it meanwhile.
            waits "$waiting" || continue
            fail "$code" "$base$waiting" "$blame" "$remedy; it waits in $spool/$waiting"
        fi
        rm -f "$spool/$waiting" "$spool/$facts"
        printf 'uploader.sh: %s\n' "$base$waiting" >&2
    done
}

# bound: deletes the oldest cores that wait, until they take no more than CORE_SPOOL_MAX. The one that has just come counts first, and
# stays: by the clock, which somebody may set, another one may be newer.
bound() {
    # shellcheck disable=SC2046 # the words are wanted: mode, links, uid, gid, size
    set -- $(ls -ln "$object")
    total=${5:-0}
    IFS=$newline
    # shellcheck disable=SC2045 # as above
    for line in $(ls -lnt "$spool"); do
        unset IFS
        # shellcheck disable=SC2086 # the words are wanted: mode, links, uid, gid, size, date, name
        set -- $line
        waits "${9-}" || continue
        [ "$spool/$9" != "$object" ] || continue
        total=$((total + $5))
        if [ "$total" -gt "$spool_max" ]; then
            rm -f "$spool/$9" "$spool/${9%.core*}.json"
            say "$spool/$9" "deleted, for CORE_SPOOL_MAX is $CORE_SPOOL_MAX MiB" "see why nothing could be sent"
        fi
    done
    unset IFS
}

# spooled: sets $spool, if the core is to become a file in CORE_SPOOL first. Where the host keeps the core, it need not.
spooled() {
    [ -n "${CORE_SPOOL-}" ] && [ -z "${CORE_SIZE-}" ] || return
    case ${CORE_SPOOL_MAX:=1024} in
    0* | *[!0-9]* | ??????????*) fail 64 "CORE_SPOOL_MAX=$CORE_SPOOL_MAX" "not a number of MiB" "say 500 or 2000" ;;
    esac
    # What waits is opened by its name: where others can replace it, they could have any file of this user sent.
    if [ -d "$CORE_SPOOL/" ] && [ -w "$CORE_SPOOL/" ] && ! open_to_all "$CORE_SPOOL"; then
        spool=$CORE_SPOOL spool_max=$((CORE_SPOOL_MAX * 1048576))
        return
    fi
    say "$CORE_SPOOL/" "this CORE_SPOOL is no directory that the user can write and others cannot change" "create it with mode 1777"
    return 1
}

# parts VERB WORD...: asks the store about uploads that have not come to their end, and soon gives up.
parts() {
    verb=$1
    shift
    case $client in
    rclone)
        rclone backend "$verb" "$@" --config= --retries=1 --low-level-retries=1 --contimeout=5s --timeout=5s --log-level=ERROR
        ;;
    aws)
        AWS_MAX_ATTEMPTS=1 aws s3api "$verb" --bucket "$bucket" --cli-connect-timeout 5 --cli-read-timeout 5 \
            ${endpoint:+--endpoint-url "$endpoint"} "$@"
        ;;
    # Of more than 1000 such uploads, s3cmd asks for the first 1000 again and again.
    s3cmd) within=10 && (as_s3cmd "$verb" "$@") ;;
    esac </dev/null 2>/dev/null
}

# unfinished: the uploads below $prefix that have not come to their end, each a line: time, id and name, with tabs between.
unfinished() {
    case $client in
    rclone)
        # JSON, with each value in a line of its own; in a name, a newline is \n.
        parts list-multipart-uploads ":s3:$bucket/$prefix" | while read -r field value; do
            value=${value%,} value=${value#\"} value=${value%\"}
            case $field in
            \"Initiated\":) when=$value ;;
            \"Key\":) name=$value ;;
            \"UploadId\":) printf '%s\t%s\t%s\n' "$when" "$value" "$name" ;;
            esac
        done
        ;;
    aws)
        # shellcheck disable=SC2016 # the quotes are those of --query
        parts list-multipart-uploads --prefix "$prefix" --no-paginate --output text \
            --query 'Uploads[?!contains(Key, `"\n"`) && !contains(Key, `"\t"`)].[Initiated,UploadId,Key]'
        ;;
    s3cmd)
        # It asks for the whole bucket, and prints names as they are: one with newlines can look like another upload with its
        # time. But that one's id is then in two lines.
        listing=$newline$(parts multipart "s3://$bucket")$newline
        printf %s "$listing" | while IFS='	' read -r when name id; do
            case $name$newline$id in
            *"$newline-"* | *"$newline" | *"$newline"*[!A-Za-z0-9._~+=-]*) ;;
            "s3://$bucket/$prefix"*)
                case $listing in
                *"	$id$newline"*"	$id$newline"*) ;;
                *) printf '%s\t%s\t%s\n' "$when" "$id" "${name#"s3://$bucket/"}" ;;
                esac
                ;;
            esac
        done
        ;;
    esac
}

# sweep_parts: aborts what killed uploads have left in the bucket. Only what has the name of a core below the same prefix, and is two
# days old: longer than any upload takes. At most three each time, and none where the time is short: the core is stored
# already. If the credentials do not allow to list or abort them, they stay. curl leaves nothing.
sweep_parts() {
    case $client$destination in
    rclones3://* | awss3://*) ;;
    s3cmds3://*) command -v timeout >/dev/null 2>&1 || return 0 ;;
    *) return 0 ;;
    esac
    [ -z "$few" ] && [ -n "$began" ] && now=$(date +%s) || return 0
    case ${CORE_TIMEOUT:=300} in
    *[!0-9]* | ???????*) return 0 ;;
    esac
    [ $((now - began + 60)) -lt "$CORE_TIMEOUT" ] || return 0
    old=$(date -u -d "@$((now - 172800))" +%Y%m%d%H%M%S 2>/dev/null) || return 0
    bucket=${base#s3://}
    prefix=${bucket#*/} bucket=${bucket%%/*} count=0
    unfinished | while IFS='-T:.+Z	' read -r year month day hour minute second rest; do
        when=$year$month$day$hour$minute$second id=${rest%	*} name=${rest##*	}
        case $when in
        '' | *[!0-9]*) continue ;;
        esac
        case $name in
        *[!A-Za-z0-9._/-]* | *../*) continue ;;
        "$prefix"*.core | "$prefix"*.core.zst | "$prefix"*.core.gz | "$prefix"*.core*.truncated) ;;
        *) continue ;;
        esac
        [ "$when" -lt "$old" ] || continue
        [ $((count += 1)) -le 3 ] || break
        case $client in
        rclone) parts cleanup ":s3:$bucket/$name" -o max-age=48h ;;
        aws) parts abort-multipart-upload --key "$name" --upload-id "${id##*	}" ;;
        s3cmd) parts abortmp "s3://$bucket/$name" "${id##*	}" ;;
        esac >/dev/null
    done
}

upload() {
    if [ -n "$spool" ]; then
        directory=$spool object=$spool/${host:+$host.}$key.core$suffix$cut
        write
        bound
        trap - HUP INT TERM # What is not sent stays there.
        flush
        sweep_parts
        explained=yes
        exit 0
    fi
    if [ -n "$by_file" ]; then
        directory=${TMPDIR:-/tmp}
        capture
        trap - HUP INT TERM
        send "$temporary" "$object" || lose "$blame"
        rm -f "$temporary"
        temporary=
    else
        case $destination in
        gs://*) answers ;;
        esac
        stream
    fi
    [ -n "$few" ] || upload_facts
    sweep_parts
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

# name_it ENDING: gives the core the name that $object says. The core cannot be read again: if another file has that name by
# now, the core gets another one with the same ENDING.
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
    [ "${object%/*}" = "$directory" ] || fail 74 "$object" "ended by SIGTERM, so nothing is sent" "see the host's log"
    object=${object%"$cut"}.truncated
    name_it ".core$suffix.truncated"
    write_facts
    fail 74 "$object" "ended by SIGTERM, so this is a part of the core" "see the host's log"
}

# create NAME: an empty file, $temporary, under a name in $directory that nobody can know before (O_EXCL, mode 0600).
create() {
    temporary=$(mktemp "$directory/.$1.XXXXXX" 2>/dev/null)
}

# begin: as create, for the core; fails where that is impossible.
begin() {
    [ -d "$directory/" ] ||
        fail 73 "$object" "no directory $directory/" "create it in the image with mode 1777, or mount a volume there"
    need "$compressor" mktemp ln mv rm
    create "${object##*/}" ||
        fail 73 "$object" "cannot create a file in $directory/" \
            "let every user write there (mode 1777), make room, or mount a volume"
}

# sweep: deletes what killed uploads of the same user have left there. Two days are longer than any upload takes.
sweep() {
    command -v find >/dev/null 2>&1 && command -v id >/dev/null 2>&1 || return 0
    find "$directory/." ! -name . -prune -type f -user "$(id -u)" -name '.*.core*.??????' -mtime +1 -exec rm -f {} \; 2>/dev/null
}

# capture: makes a file $temporary of the core. Under a temporary name, so that nobody ever reads half a core.
capture() {
    begin
    trap 'explained=yes; exit 74' HUP INT
    trap keep_part TERM
    mute # Some shells say "Terminated" here.
    said=$([ -z "$spool_max" ] || ulimit -f "$((spool_max / 512 + 1))" 2>/dev/null; compress 2>&1 >"$temporary" 9>&-) || {
        status=$?
        unmute
        blame "$compressor" "$status" "$said"
        lose "$blame"
    }
    trap '' TERM # From here on it is whole.
    unmute
    sweep
}

# file_of_facts: as create, for what $describe says.
file_of_facts() {
    create "${object##*/}" && printf '%s\n' "$describe" 2>/dev/null >"$temporary"
}

# of_a_part FACTS CORE: whether FACTS are this user's, of a first upload of the same core that was cut off, and CORE is the whole.
# Only a name that the helper has made is one that no other core has.
of_a_part() {
    [ -n "${CORE_KEY-}" ] && owned "$1" && IFS= read -r line 2>/dev/null <"$1" || return 1
    line=${line#'{"core": "'}
    case ${2##*/}:${line%%\"*} in
    *.truncated:*) return 1 ;;
    "$key.core"*":$key.core"*.truncated) return 0 ;;
    *) return 1 ;;
    esac
}

# Beside the core; without these facts the core is still a core, so a failure is only reported.
write_facts() {
    rm -f "$temporary"
    describe "${object##*/}"
    core=$object object=${object%.core*}.json
    if ! file_of_facts || { of_a_part "$object" "$core" && ! rm -f "$object"; } || ! place "$object"; then
        say "$object" "cannot be written" "see who else writes there, and make room"
    fi
    rm -f "$temporary"
    object=$core temporary=
}

# open_to_all DIRECTORY: whether everybody may write there, and it is not sticky.
open_to_all() {
    case $(ls -ld "$1/" 2>/dev/null) in
    d???????w[!tT]*) return 0 ;;
    *) return 1 ;;
    esac
}

# Into the directory, with its facts beside it.
write() {
    if [ -e "$object" ] || [ -L "$object" ]; then
        fail 73 "$object" "exists already" "nothing to do if it is of the same crash; else see who else writes there"
    fi
    ! open_to_all "$directory" ||
        say "$directory/" "everybody can delete and replace the cores of others there" "chmod +t $directory/"
    capture
    name_it ".core$suffix$cut"
    write_facts
}

# try: tries all that a core would need, as far as that is possible without one.
try() {
    case $destination in
    /*)
        begin
        answer="a file can be created there"
        ;;
    *)
        answer="$client says that the bucket answers"
        ask list "$object" || case $blame in
        *AccessDenied* | *'ode: 403'*)
            answer="$answer, and does not list its objects; whether they can be written, a core shows"
            ;;
        *) lose "$blame" ;;
        esac
        ;;
    esac
    printf 'uploader.sh: %s: would be stored there, by %s: %s\n' "$object" "$compressor" "$answer" >&2
}

# What the functions need to know from the start.
explained='' muted='' temporary='' few='' by_file='' within='' answered='' spool='' spool_max='' file='' endpoint='' mode=store
keys='AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY' address='AWS_ENDPOINT_URL and network'
trap 'ended "$?"' EXIT

case ${1-} in
--help | -h)
    echo "$usage"
    echo "DESTINATION: s3://BUCKET/PREFIX/, gs://BUCKET/PREFIX/, azblob://CONTAINER/PREFIX/, rclone:REMOTE:PATH/,"
    echo "file:///DIRECTORY or /DIRECTORY; without it CORE_DESTINATION of the environment or of /etc/core-uploader.conf"
    explained=yes
    exit 0
    ;;
--dry-run | --resend)
    mode=${1#--}
    shift
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
settings /etc/core-uploader.conf
destination=${destination:-${CORE_DESTINATION-}}
case $destination in
s3:///* | s3:// | gs:///* | gs:// | azblob:///* | azblob://) fail 64 "$destination" "no bucket" "say s3://BUCKET/PREFIX/" ;;
s3://* | gs://* | azblob://* | rclone:?*:*) ;;
file:///*) destination=${destination#file://} ;;
/*) ;;
'') fail 64 core "no destination" "set CORE_DESTINATION in the container, or give one as the first argument" ;;
*) fail 64 "$destination" "not a destination" "say s3://BUCKET/PREFIX/, file:///DIRECTORY or /DIRECTORY" ;;
esac
[ "$mode" != store ] || [ ! -t 0 ] ||
    fail 64 "$destination" "no core: stdin is a terminal" "give it on stdin: uploader.sh $destination <core"

# As many processes as exist at the same time. A shell that cannot fork ends, with a message of its own, which is hidden: ended
# says more. bash tries for 15 seconds before it ends.
mute
case $destination in
/*) processes 3 || exit 71 ;;
*) (processes 8) || { processes 2 && few=yes; } || exit 71 ;;
esac
unmute

# Known before the core is read, where the host has kept the core: then a part may be stored, under a name that says so.
cut=
[ "${CORE_TRUNCATED-}" != 1 ] || cut=.truncated

directory=$destination
while [ "$directory" != "${directory%/}" ]; do
    directory=${directory%/}
done
case $directory in
*:) base=$directory ;;
*) base=$directory/ ;;
esac
if [ -n "${CORE_KEY-}" ]; then
    # The helper's, unless an older helper has left a variable of that name to the container.
    part "$CORE_KEY" 200
    key=$part host=
else
    part "${CORE_HOSTNAME:-$(uname -n)}" 64
    host=$part
    program=${CORE_EXE-}
    part "${CORE_COMM:-${program##*/}}" 64
    key=$part
    for value in "${1:-${CORE_PID-}}" "${2:-${CORE_UID-}}" "${3:-${CORE_GID-}}" "${CORE_TIME:-$(date +%s)}"; do
        part "$value" 20
        key=$key.$part
    done
fi
clean
room
case $destination in
/*) object=$base${host:+$host.}$key.core ;;
*)
    object=$base${host:+$host/}$key.core
    choose_client
    ;;
esac
choose_compressor
object=$object$suffix$cut

case $mode$destination in
dry-run*) try ;;
resend/*) fail 64 "$destination" "no store to send to" "name a bucket" ;;
resend*)
    [ -n "$spool" ] || fail 64 "$destination" "CORE_SPOOL is not set, or not usable" "set it to the directory where cores wait"
    flush
    ;;
store/*) write ;;
*) upload ;;
esac
explained=yes
[ "$mode" != store ] || printf 'uploader.sh: %s\n' "$object" >&2
