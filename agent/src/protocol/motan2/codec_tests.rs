use super::{
    super::{inbox::Inbox, testing},
    *,
};

const LIMIT: usize = 10 * 1024 * 1024;

fn decode_all(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    decode(&mut BytesMut::from(bytes), LIMIT)
}

fn frame(bytes: &[u8]) -> Frame {
    match decode_all(bytes) {
        Ok(Decoded::Frame(frame)) => frame,
        other => panic!("{other:?}"),
    }
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_head(frame.head, &frame.meta, &[], frame.body.len(), &mut out);
    out.extend_from_slice(&frame.body);
    out.to_vec()
}

/// A frame with these lengths and nothing after the head.
fn lengths(meta: u32, body: u32) -> Vec<u8> {
    let mut out = vec![0xf1, 0xf1, 0, 8, 0x30, 0, 0, 0, 0, 0, 0, 0, 1];
    out.extend(meta.to_be_bytes());
    out.extend(std::iter::repeat_n(b'\n', meta.min(64) as usize));
    out.extend(body.to_be_bytes());
    out
}

#[test]
fn golden_frames_are_written_as_they_were_read() {
    let frames = testing::all_golden();
    assert_eq!(frames.len(), 18);
    for (name, bytes) in frames {
        match decode_all(&bytes) {
            Ok(Decoded::Frame(frame)) => assert_eq!(encoded(&frame), bytes, "{name}"),
            Ok(Decoded::Motan1(whole)) => assert!(name.starts_with("v5-") && whole == bytes, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn golden_frames_say_what_was_recorded() {
    let v1 = frame(&testing::golden("v1-string.request"));
    assert_eq!(v1.head, Head { kind: 0, status: 0, serialization: 6, id: 0x18ea_007a_8830_0001 });
    assert_eq!(v1.meta.get("M_p").unwrap(), "kit.EchoService");
    assert_eq!(&v1.body[..], b"\x01\0\0\0\x0bhello motan");
    let v2 = frame(&testing::golden("v2-business-exception.answer"));
    assert_eq!((v2.head.kind, v2.head.status, v2.head.serialization), (3, 1, 6));
    let v7 = frame(&testing::golden("v7-grpc.request"));
    assert_eq!(v7.head.serialization, 1);
    let v8 = frame(&testing::golden("v8-one-way.forwarded"));
    assert_eq!(v8.head.kind, kind::ONE_WAY | kind::PROXY);
}

#[test]
fn a_frame_cut_anywhere_needs_more() {
    for (name, bytes) in testing::all_golden() {
        for cut in 0..bytes.len() {
            let mut input = BytesMut::from(&bytes[..cut]);
            match decode(&mut input, LIMIT) {
                Ok(Decoded::NeedMore(want)) => assert!(want > cut && want <= bytes.len().max(21), "{name} at {cut}"),
                other => panic!("{name} at {cut}: {other:?}"),
            }
            assert_eq!(input.len(), cut, "nothing is taken of what is not whole");
            input.extend_from_slice(&bytes[cut..]);
            assert!(!matches!(decode(&mut input, LIMIT), Ok(Decoded::NeedMore(_)) | Err(_)), "{name} at {cut}");
            assert!(input.is_empty());
        }
    }
}

#[test]
fn metadata_and_body_lie_in_the_buffer_they_came_in() {
    let bytes = testing::golden("v1-string.request");
    let mut input = BytesMut::from(&bytes[..]);
    let place = input.as_ptr() as usize..input.as_ptr() as usize + input.len();
    let Ok(Decoded::Frame(frame)) = decode(&mut input, LIMIT) else { panic!() };
    assert!(place.contains(&(frame.body.as_ptr() as usize)));
    assert!(place.contains(&(frame.meta.as_raw().as_ptr() as usize)));
}

#[test]
fn lengths_are_bounded_before_anything_follows() {
    for len in [LIMIT as u32 + 1, 1 << 31, u32::MAX] {
        let too_large = |r| matches!(r, Err(DecodeError::TooLarge { len: l, .. }) if l == len as usize);
        assert!(too_large(decode_all(&lengths(len, 0)[..17])), "metadata {len}");
        assert!(too_large(decode_all(&lengths(0, len))), "body {len}");
        let mut motan1 = vec![0xf1, 0xf1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        motan1.extend(len.to_be_bytes());
        assert!(too_large(decode_all(&motan1)), "Motan1 {len}");
    }
    assert!(matches!(decode_all(&lengths(0, LIMIT as u32)), Ok(Decoded::NeedMore(n)) if n == LIMIT + 21));
    assert!(matches!(decode_all(&lengths(0, 0)), Ok(Decoded::Frame(_))));
}

#[test]
fn the_largest_body_passes_and_costs_no_more_than_itself() {
    let mut bytes = lengths(0, LIMIT as u32);
    bytes.resize(21 + LIMIT, 7);
    assert_eq!(frame(&bytes).body.len(), LIMIT);
}

#[test]
fn what_is_not_motan_is_fatal_at_the_first_wrong_byte() {
    assert!(matches!(decode_all(b"G"), Err(DecodeError::Magic(..))));
    assert!(matches!(decode_all(b"\xf1G"), Err(DecodeError::Magic(..))));
    assert!(matches!(decode_all(b"\xf1\xf1\0\x10"), Err(DecodeError::Version(2))));
    let mut odd = lengths(0, 0);
    odd.splice(13..17, [0, 0, 0, 1, b'a']);
    assert!(matches!(decode_all(&odd), Err(DecodeError::Metadata(_))));
}

#[test]
fn random_bytes_neither_panic_nor_reserve() {
    let mut random = fastrand::Rng::with_seed(17);
    let samples = testing::all_golden();
    for round in 0..20_000 {
        let mut bytes: Vec<u8> = if round % 2 == 0 {
            (0..random.usize(..64)).map(|_| random.u8(..)).collect()
        } else {
            samples[random.usize(..samples.len())].1.to_vec()
        };
        for _ in 0..random.usize(..4) {
            if let Some(at) = (!bytes.is_empty()).then(|| random.usize(..bytes.len())) {
                bytes[at] = random.u8(..);
            }
        }
        let mut input = BytesMut::from(&bytes[..]);
        let before = input.capacity();
        while let Ok(Decoded::Frame(_) | Decoded::Motan1(_)) = decode(&mut input, LIMIT) {}
        assert!(input.capacity() <= before, "decoding makes no room");
    }
}

#[tokio::test]
async fn a_claim_makes_no_more_room_than_thirty_two_times_what_came() {
    let (mut near, mut far) = tokio::io::duplex(1 << 16);
    let mut inbox = Inbox::new(LIMIT);
    tokio::io::AsyncWriteExt::write_all(&mut far, &lengths(0, LIMIT as u32)).await.unwrap();
    for _ in 0..2 {
        std::future::poll_fn(|cx| std::task::Poll::Ready(inbox.poll_fill(&mut near, cx).is_ready())).await;
        assert!(inbox.next().unwrap().is_none());
        assert!(inbox.capacity() <= 32 * 8 * 1024 + 64, "{}", inbox.capacity());
    }
}
