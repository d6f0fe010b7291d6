//! The layer: bytes in, bytes out.

use super::*;
use proptest::prelude::*;

#[test]
fn data_passes_both_ways_in_pieces_of_any_size() {
    for versions in VERSIONS {
        let (server, client) = plain_configs(versions);
        for (seed, bound) in [(1, 1), (2, 2), (3, 7), (4, 600), (5, 5000), (6, 40_000), (7, usize::MAX)] {
            let mut seeded = Seeded(seed);
            let mut pieces = Seeded(seed + 100);
            let mut pair = Pair::new(&client, &server);
            pair.run_in(|_| 1 + pieces.below(bound));
            pair.check_established();
            let max = PLAIN_BYTES_MAX;
            let lengths = [0, 1, max - 1, max, max + 1, 3 * max, if bound > 100 { 1 << 20 } else { 5 }];
            for len in lengths {
                let (up, down) = (seeded.bytes(len), seeded.bytes(len));
                pair.client.send(&up);
                pair.server.send(&down);
                pair.run_in(|_| 1 + pieces.below(bound));
                assert!(
                    pair.server.got == up && pair.client.got == down,
                    "seed {seed} bound {bound} len {len}"
                );
                pair.server.got.clear();
                pair.client.got.clear();
                assert!(pair.client.inbox.is_empty() && pair.server.inbox.is_empty());
            }
            pair.check_established();
        }
    }
}

#[test]
fn records_are_as_long_as_they_may_be_and_no_longer() {
    for (versions, overhead) in VERSIONS.into_iter().zip([22, 29]) {
        let (server, client) = plain_configs(versions);
        let mut pair = Pair::established(&client, &server);
        for (len, records) in [(0, 0), (1, 1), (16_384, 1), (16_385, 2), (32_768, 2), (32_769, 3)] {
            pair.client.send(&vec![7; len]);
            assert_eq!(pair.client.wire.len(), len + records * overhead, "{len}");
            pair.run();
        }
    }
}

#[test]
fn many_records_at_once_come_out_at_once() {
    let (server, client) = plain_configs(VERSIONS[0]);
    let mut pair = Pair::established(&client, &server);
    for byte in 0..200 {
        pair.client.send(&[byte]);
    }
    pair.run();
    assert_eq!(pair.server.got, (0..200).collect::<Vec<u8>>());
}

#[test]
fn nothing_is_sent_before_the_handshake_ended() {
    let (server, client) = plain_configs(VERSIONS[0]);
    let mut pair = Pair::new(&client, &server);
    pair.client.receive(&[]);
    let hello = pair.client.wire.len();
    for end in [&mut pair.client, &mut pair.server] {
        assert!(end.tls.is_handshaking());
        assert_eq!(end.tls.send(b"early", &mut end.wire), Err(TlsError::NotOpen));
        end.close();
    }
    assert_eq!((pair.client.wire.len(), pair.server.wire.len()), (hello, 0));
    pair.run();
    pair.check_established();
}

#[test]
fn an_end_without_the_handshakes_rest_can_be_closed_and_sends_nothing() {
    // Half a message of a handshake, and the half of a record: nothing to hold on to for a shutdown.
    let (server, _) = plain_configs(VERSIONS[0]);
    let mut end = End::new(Tls::server(&server).unwrap());
    end.receive(&[22, 3, 1, 0, 6, 1, 0, 2, 0, 3, 3, 22, 3, 1, 0]);
    assert_eq!((end.inbox.len(), &end.error), (15, &None));
    end.close();
    assert_eq!(end.tls.send(b"x", &mut end.wire), Err(TlsError::NotOpen));
    assert!(end.wire.is_empty());
}

#[test]
fn close_notify_ends_each_direction_by_itself() {
    for versions in VERSIONS {
        let (server, client) = plain_configs(versions);
        let mut pair = Pair::established(&client, &server);
        pair.client.send(b"last");
        pair.client.close();
        pair.client.close();
        assert_eq!(pair.client.tls.send(b"more", &mut pair.client.wire), Err(TlsError::NotOpen));
        pair.run();
        assert_eq!(pair.server.got, b"last");
        assert!(pair.server.tls.is_ended() && !pair.client.tls.is_ended());
        // What follows is dropped, whatever it is.
        pair.server.receive(b"GET / HTTP/1.1\r\n");
        assert!(pair.server.inbox.is_empty() && pair.server.got == b"last");
        pair.server.send(b"answer");
        pair.server.close();
        pair.run();
        assert_eq!((&pair.client.error, &pair.server.error), (&None, &None));
        assert_eq!(pair.client.got, b"answer");
        assert!(pair.client.tls.is_ended());
        assert!(pair.client.wire.is_empty() && pair.server.wire.is_empty());
    }
}

#[test]
fn a_stream_cut_off_does_not_look_ended() {
    let (server, client) = plain_configs(VERSIONS[0]);
    let mut pair = Pair::established(&client, &server);
    pair.client.send(b"whole");
    pair.client.send(b"cut");
    pair.client.wire.pop();
    pair.run();
    assert_eq!(pair.server.got, b"whole");
    assert!(!pair.server.tls.is_ended());
    assert!(!pair.server.inbox.is_empty());
}

#[test]
fn sessions_are_resumed_until_the_configuration_is_loaded_again() {
    for versions in VERSIONS {
        let (dir, ca) = (Dir::new(), Authority::new("ca"));
        let files = server_files(vec![dir.pair("server", &ca.server(&["broker.test"]))]);
        let (server, _) = files.load().unwrap();
        let (client, _) = client_files(dir.write("ca.crt", &ca.pem)).load_versions(versions).unwrap();
        let kind = |server| Pair::established(&client, server).server.tls.handshake_kind();
        assert_eq!(kind(&server), Some(HandshakeKind::Full));
        assert_eq!(kind(&server), Some(HandshakeKind::Resumed));
        let (reloaded, _) = files.load().unwrap();
        assert_eq!(kind(&reloaded), Some(HandshakeKind::Full));
        assert_eq!(kind(&reloaded), Some(HandshakeKind::Resumed));
    }
}

#[test]
fn messages_split_after_the_handshake_do_not_hinder_sending() {
    let (server, client) = plain_configs(VERSIONS[0]);
    let mut small = ServerConfig::clone(&server);
    // Tickets (about 250 bytes) leave in several records.
    small.max_fragment_size = Some(64);
    let mut pair = Pair::new(&client, &Arc::new(small));
    let mut sent_split = 0;
    // Byte by byte: the client sends whenever it can, also in the middle of a ticket.
    pair.client.receive(&[]);
    for _ in 0..100_000 {
        let up: Vec<u8> = pair.client.wire.drain(..).collect();
        pair.server.receive(&up);
        if pair.server.wire.is_empty() {
            break;
        }
        let byte = pair.server.wire.remove(0);
        pair.client.receive(&[byte]);
        if !pair.client.tls.is_handshaking() && pair.client.tls.kept > 0 {
            pair.client.send(b"x");
            sent_split += 1;
        }
    }
    pair.check_established();
    assert!(sent_split > 50, "{sent_split}");
    assert_eq!(pair.server.got.len(), sent_split);
    assert_eq!(pair.client.tls.kept, 0);
    let Endpoint::Client(connection) = &pair.client.tls.endpoint else { unreachable!() };
    assert_eq!(connection.tls13_tickets_received(), 1);
    pair.client.close();
    pair.run();
    assert!(pair.server.tls.is_ended());
}

/// Asks the other side to change its keys too.
fn key_update(end: &mut End) {
    let Endpoint::Client(connection) = &mut end.tls.endpoint else { unreachable!() };
    match connection.process_tls_records(&mut []).state {
        Ok(ConnectionState::WriteTraffic(traffic)) => traffic.refresh_traffic_keys().unwrap(),
        other => unreachable!("{other:?}"),
    }
    end.receive(&[]);
}

#[test]
fn keys_change_in_the_middle() {
    let (server, client) = plain_configs(VERSIONS[0]);
    let mut pair = Pair::established(&client, &server);
    for round in 0..100 {
        key_update(&mut pair.client);
        pair.run();
        pair.client.send(&[round]);
        // The answer to the update leaves in front of this.
        pair.server.send(&[round]);
        pair.run();
    }
    pair.check_established();
    assert_eq!(pair.client.got, pair.server.got);
    assert_eq!(pair.client.got.len(), 100);
}

#[test]
fn changing_keys_without_end_is_an_error() {
    let (server, client) = plain_configs(VERSIONS[0]);
    let mut pair = Pair::established(&client, &server);
    for _ in 0..33 {
        assert_eq!(pair.server.error, None);
        key_update(&mut pair.client);
        pair.run();
    }
    let flood = rustls::Error::PeerMisbehaved(rustls::PeerMisbehaved::TooManyKeyUpdateRequests);
    assert_eq!(pair.server.error, Some(TlsError::Protocol(flood)));
}

#[test]
fn what_is_not_tls_is_named() {
    use Spoken::{Http, Mqtt, Proxy, Unknown};
    let (server, client) = plain_configs(VERSIONS[0]);
    let cases: [(&[u8], Spoken); 9] = [
        (b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01a", Mqtt),
        (b"\x20\x03\0\0\0", Mqtt),
        (b"GET /mqtt HTTP/1.1\r\nHost: a\r\n\r\n", Http),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Http),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Proxy),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", Proxy),
        (b"\x80\x2e\x01\0\x02", Unknown),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Unknown),
        (b"\0\0\0\0\0\0\0", Unknown),
    ];
    for (bytes, spoken) in cases {
        for (tls, peer) in [
            (Tls::server(&server).unwrap(), Side::Client),
            (Tls::client(&client, ServerName::try_from("broker.test").unwrap()).unwrap(), Side::Server),
        ] {
            let mut end = End::new(tls);
            end.receive(&[]);
            let before = end.wire.len();
            end.receive(bytes);
            let error = end.error.clone().unwrap();
            assert_eq!(error, TlsError::NotTls { peer, spoken });
            // An alert in the clear: 21, version, length 2, fatal, decode_error.
            assert_eq!(end.wire[before..], [21, 3, 3, 0, 2, 2, 50], "{spoken:?}");
            // Dead from here on.
            assert_eq!(end.tls.receive(&mut [], &mut Vec::new(), &mut Vec::new()), Err(TlsError::NotOpen));
        }
    }
    let text = TlsError::NotTls { peer: Side::Client, spoken: Mqtt }.to_string();
    assert_eq!(
        text,
        "the client speaks MQTT without TLS, where TLS is spoken: let it use TLS (mqtts://), or the port of a \
         listener without `tls`"
    );
}

#[test]
fn what_waits_for_its_rest_is_bounded() {
    let (server, client) = plain_configs(VERSIONS[0]);
    // A hello of 0xffff bytes, in full records, that never ends.
    let mut end = End::new(Tls::server(&server).unwrap());
    let mut record = vec![22, 3, 1, 0x40, 0];
    record.extend([1, 0, 0xff, 0xff]);
    record.resize(HEADER_BYTES + PLAIN_BYTES_MAX, 0);
    end.receive(&record);
    record[HEADER_BYTES..HEADER_BYTES + 4].fill(0);
    while end.error.is_none() {
        assert!(end.inbox.len() <= HANDSHAKE_BYTES_MAX);
        end.receive(&record);
    }
    assert_eq!(end.error, Some(TlsError::TooLong { left: 4 * record.len(), max: HANDSHAKE_BYTES_MAX }));

    // A record of the longest length that rustls takes, whose last byte is missing; then one longer.
    let mut pair = Pair::established(&client, &server);
    let mut longest = vec![23, 3, 3, 0x47, 0xff];
    longest.resize(RECORD_BYTES_MAX - 2, 0);
    pair.server.receive(&longest);
    assert_eq!((pair.server.inbox.len(), &pair.server.error), (longest.len(), &None));
    let mut pair = Pair::established(&client, &server);
    pair.server.receive(&[23, 3, 3, 0x48, 0]);
    assert!(matches!(pair.server.error, Some(TlsError::Protocol(rustls::Error::InvalidMessage(_)))));
    pair.run();
    assert_eq!(
        pair.client.error,
        Some(TlsError::Refused { peer: Side::Server, alert: rustls::AlertDescription::DecodeError })
    );
}

#[test]
fn a_changed_record_is_refused_and_the_peer_is_told() {
    for versions in VERSIONS {
        let (server, client) = plain_configs(versions);
        let mut pair = Pair::established(&client, &server);
        pair.client.send(b"good");
        let good = pair.client.wire.len();
        pair.client.send(b"bad");
        pair.client.wire[good + 10] ^= 1;
        pair.run();
        assert_eq!(pair.server.got, b"good");
        assert_eq!(pair.server.error, Some(TlsError::Protocol(rustls::Error::DecryptError)));
        let alert = rustls::AlertDescription::BadRecordMac;
        assert_eq!(pair.client.error, Some(TlsError::Refused { peer: Side::Server, alert }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_end_in_an_error_or_wait(
        head in prop_oneof![Just(vec![]), Just(vec![22, 3, 1]), Just(vec![22, 3, 1, 0, 50, 1, 0, 0, 46, 3, 3])],
        tail in prop::collection::vec(any::<u8>(), 0..200),
        cut in any::<prop::sample::Index>(),
    ) {
        thread_local!(static CONFIGS: (Arc<ServerConfig>, Arc<ClientConfig>) = plain_configs(VERSIONS[0]));
        let (server, client) = CONFIGS.with(Clone::clone);
        let mut bytes = head;
        bytes.extend(tail);
        let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
        let name = ServerName::try_from("broker.test").unwrap();
        for tls in [Tls::server(&server).unwrap(), Tls::client(&client, name).unwrap()] {
            let mut end = End::new(tls);
            end.receive(first);
            end.receive(second);
            end.close();
            prop_assert!(end.got.is_empty());
            prop_assert!(end.tls.is_handshaking());
            prop_assert!(end.error.is_some() || end.inbox.len() <= bytes.len());
        }
    }

    /// A byte of the handshake or of the data changed on the way: never different data.
    #[test]
    fn a_changed_byte_never_changes_data(
        tls12 in any::<bool>(),
        up in any::<bool>(),
        at in 0_usize..3000,
        flip in 1_u8..,
        piece in 1_usize..500,
    ) {
        thread_local!(static CONFIGS: [(Arc<ServerConfig>, Arc<ClientConfig>); 2] = VERSIONS.map(plain_configs));
        let (server, client) = CONFIGS.with(|configs| configs[usize::from(tls12)].clone());
        let mut pair = Pair::new(&client, &server);
        let mut passed = [0, 0];
        let mut sent = false;
        pair.client.receive(&[]);
        loop {
            let mut moved = false;
            for forth in [true, false] {
                let (from, to) = if forth { (&mut pair.client, &mut pair.server) } else { (&mut pair.server, &mut pair.client) };
                let len = piece.min(from.wire.len());
                let mut bytes: Vec<u8> = from.wire.drain(..len).collect();
                let start = passed[usize::from(forth)];
                passed[usize::from(forth)] += len;
                if forth == up && (start..start + len).contains(&at) {
                    bytes[at - start] ^= flip;
                }
                if to.error.is_none() && len > 0 {
                    to.receive(&bytes);
                }
                moved |= len > 0;
            }
            let ready = |end: &End| end.error.is_none() && !end.tls.is_handshaking();
            if !moved && !sent && ready(&pair.client) && ready(&pair.server) {
                pair.client.send(&[1; 100]);
                pair.server.send(&[2; 100]);
                (sent, moved) = (true, true);
            }
            if !moved {
                break;
            }
        }
        prop_assert!(pair.server.got.is_empty() || pair.server.got == [1; 100]);
        prop_assert!(pair.client.got.is_empty() || pair.client.got == [2; 100]);
    }
}
