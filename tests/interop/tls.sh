#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# TLS with the clients of others: certificates, verified both ways, and pre-shared keys; over TCP, where
# it is required, and over the Unix socket, where it is offered.
. "$(dirname "$0")/common.bash"
needs nbdinfo nbdcopy qemu-img certtool psktool

certificate() { # DIR NAME OPTION...: NAME-cert.pem and NAME-key.pem, signed by DIR's authority
	local at=$1 name=$2
	shift 2
	certtool --generate-privkey --ecc --outfile "$at/$name-key.pem" 2>>certtool.log &&
		printf '%s\n' "cn = localhost" "$@" >"$at/$name.info" &&
		certtool --generate-certificate --load-privkey "$at/$name-key.pem" \
			--load-ca-certificate "$at/ca-cert.pem" --load-ca-privkey "$at/ca-key.pem" \
			--template "$at/$name.info" --outfile "$at/$name-cert.pem" 2>>certtool.log ||
		{ cp certtool.log err; die "certtool: $name"; }
	chmod 600 "$at/$name-key.pem"
}
authority() { # DIR
	mkdir -p "$1"
	certtool --generate-privkey --ecc --outfile "$1/ca-key.pem" 2>>certtool.log &&
		printf '%s\n' 'cn = the test' ca cert_signing_key >"$1/ca.info" &&
		certtool --generate-self-signed --load-privkey "$1/ca-key.pem" \
			--template "$1/ca.info" --outfile "$1/ca-cert.pem" 2>>certtool.log ||
		{ cp certtool.log err; die "certtool: authority"; }
}

port() { # one that nobody listens at
	local p
	while :; do
		p=$((20000 + RANDOM % 30000))
		(exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null || { echo $p; return; }
	done
}

scene
authority pki
authority other
for at in pki other; do
	certificate $at server tls_www_server 'dns_name = localhost' 'ip_address = 127.0.0.1'
	certificate $at client tls_www_client
done
psktool -u alice -p keys.psk >psktool.log 2>&1 || die "psktool"
psktool -u alice -p wrong.psk >psktool.log 2>&1 || die "psktool"
chmod 600 keys.psk wrong.psk
port=$(port)
tcp="nbds://localhost:$port/m/a"

# --- certificates ---
serve --tls-certificates=pki --nbd-tcp=localhost:$port
run "over TCP with certificates" nbdinfo "$tcp?tls-certificates=$dir/pki"
shows 'with TLS' "encrypted"
run "every byte" bash -c "nbdcopy '$tcp?tls-certificates=$dir/pki' - | cmp - after"
run "and in" nbdcopy after "nbds://localhost:$port/m/b?tls-certificates=$dir/pki"
refused '' "TCP without TLS" nbdinfo "nbd://localhost:$port/m/a"
refused '' "a server that another authority signed for" nbdinfo "$tcp?tls-certificates=$dir/other"
run "over the Unix socket" nbdinfo "nbds+unix://localhost/m/a?socket=$dir/nbd&tls-certificates=$dir/pki"
shows 'with TLS' "encrypted"
run "where it is only offered" nbdinfo "$(uri m/a)"
shows 'without TLS' "so in the clear too"
run "and from an optional client" nbdinfo "$(uri m/b)"
mkdir qemu
cp pki/ca-cert.pem qemu/
cp pki/client-cert.pem pki/client-key.pem qemu/
image="driver=raw,file.driver=nbd,file.host=localhost,file.port=$port,file.export=m/a,file.tls-creds=t"
run "qemu-img with certificates" qemu-img info \
	--object "tls-creds-x509,id=t,dir=$dir/qemu,endpoint=client" --image-opts "$image"
run "every byte" qemu-img convert -O raw \
	--object "tls-creds-x509,id=t,dir=$dir/qemu,endpoint=client" --image-opts "$image" copy
same copy after "is the same"
stop_serving

# --- clients are verified ---
serve --tls-certificates=pki --tls-verify-peer --tls=require
unix="nbds+unix://localhost/m/a?socket=$dir/nbd"
run "a client with a certificate" nbdinfo "$unix&tls-certificates=$dir/pki"
mkdir nobody
cp pki/ca-cert.pem nobody/
refused '' "a client without one" nbdinfo "$unix&tls-certificates=$dir/nobody"
cp other/client-cert.pem other/client-key.pem nobody/
refused '' "a client that another authority signed for" nbdinfo "$unix&tls-certificates=$dir/nobody"
refused '' "the clear, where TLS is required" nbdinfo "$(uri m/a)"
stop_serving

# --- pre-shared keys ---
serve --tls-psk=keys.psk --tls=require
psk="nbds+unix://alice@/m/a?socket=$dir/nbd&tls-psk-file"
run "a client with the key" nbdinfo "$psk=$dir/keys.psk"
shows 'with TLS' "encrypted"
run "every byte" bash -c "nbdcopy '$psk=$dir/keys.psk' - | cmp - after"
refused '' "a client with another key" nbdinfo "$psk=$dir/wrong.psk"
refused '' "a user that nobody knows" \
	nbdinfo "nbds+unix://bob@/m/a?socket=$dir/nbd&tls-psk-file=$dir/keys.psk"
refused '' "the clear" nbdinfo "$(uri m/a)"
mkdir qemu-psk
cp keys.psk qemu-psk/keys.psk
image="driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=$dir/nbd,file.export=m/a,file.tls-creds=t"
run "qemu-img with the key" qemu-img convert -O raw \
	--object "tls-creds-psk,id=t,dir=$dir/qemu-psk,username=alice,endpoint=client" \
	--image-opts "$image" copy
same copy after "is the same"
run "load over TLS" "$VMIMG" bench "nbds+unix://alice@/m/b?socket=$dir/nbd&tls-psk-file=$dir/keys.psk" \
	--rw=randwrite --verify
stop_serving
sound "the store is sound"
