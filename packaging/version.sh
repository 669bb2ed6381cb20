#!/bin/bash
# Prints one word about this tree, for packages:
#
#	version.sh version    0.3.0, or between releases 0.3.0+12.g724fd05, or before the first 0.0~20260731.120000.g724fd05
#	version.sh revision   the commit, with +changes if files differ from it
#	version.sh epoch      when it was committed, in seconds: the time of everything that is built from it
#
# They sort as Debian and RPM sort. A source tarball carries the three in
# packaging/VERSION, because it has no history.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -f packaging/VERSION ]; then
    sed -n "s/^$1=//p" packaging/VERSION
    exit
fi

changes=
[ -z "$(git status --porcelain --untracked-files=normal)" ] || changes=+changes

case ${1:-} in
version)
    if tag=$(git describe --tags --long --match 'v[0-9]*' 2>/dev/null); then
        commit=${tag##*-} tag=${tag%-*}
        version=${tag%-*} && version=${version#v}
        [ "${tag##*-}" = 0 ] || version+=+${tag##*-}.$commit
    else # a count of commits would start anew in a clone that is not whole
        version=0.0~$(TZ=UTC git log -1 --date=format-local:%Y%m%d.%H%M%S --format=%cd.g%h --abbrev=7)
    fi
    echo "${version//-/\~}$changes"
    ;;
revision) echo "$(git rev-parse HEAD)$changes" ;;
epoch) git log -1 --format=%ct ;;
*)
    echo "version.sh: version, revision or epoch?" >&2
    exit 2
    ;;
esac
