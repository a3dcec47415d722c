//! ZooKeeper's client protocol, as far as it is needed: records in big-endian, each with a length before it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Create = 1,
    Delete = 2,
    Exists = 3,
    GetData = 4,
    SetData = 5,
    Ping = 11,
    /// With the folder's [`Stat`].
    GetChildren2 = 12,
    /// Says who asks.
    Auth = 100,
    CloseSession = -11,
}

/// Number of a ping, whose answer may come between others.
pub(super) const PING: i32 = -2;
/// Number of a login, whose answer comes like a ping's.
pub(super) const AUTH: i32 = -4;
/// Number under which the server tells that a watch fired.
pub(super) const EVENT: i32 = -1;
/// Bytes of the header of every answer: number, transaction, error.
pub(super) const HEADER: usize = 16;

/// Why the server did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub i32);

impl Code {
    pub const NO_NODE: Self = Self(-101);
    pub const BAD_VERSION: Self = Self(-103);
    pub const NODE_EXISTS: Self = Self(-110);
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self.0 {
            -101 => "no such node",
            -102 | -113 => "not permitted: the node's access list keeps this agent out",
            -103 => "changed meanwhile",
            -108 => "its parent is ephemeral",
            -110 => "exists already",
            -111 => "has children",
            -112 => "the session expired",
            -114 => "the access list names nobody: `acl` needs an account",
            -115 => "the account is refused",
            -118 => "the session moved",
            -119 => "the server is read-only: it lost its quorum",
            -125 => "over the server's quota",
            code => return write!(f, "error {code}"),
        };
        f.write_str(text)
    }
}

/// A message that is not ZooKeeper's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

type Read<T> = Result<T, Malformed>;

/// What the server knows about a node besides its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stat {
    /// Transaction that created it.
    pub czxid: i64,
    /// Grows with every write of its data.
    pub version: i32,
    /// Creations and deletions of children, counted.
    pub cversion: i32,
    /// Session whose end deletes it; 0 for a node that stays.
    pub owner: i64,
}

/// Who comes back, or is new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// 0: none yet.
    pub session: i64,
    pub password: Bytes,
    /// The last transaction that is known; a server that knows less is not taken.
    pub seen: i64,
}

/// What the server makes of an [`Identity`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Welcome {
    /// Milliseconds of silence after which the session ends; 0 when it has ended.
    pub timeout: i32,
    pub session: i64,
    pub password: Bytes,
}

/// The first message of a connection, with its length.
pub(super) fn hello(identity: &Identity, timeout: i32) -> Bytes {
    framed(|out| {
        out.put_i32(0);
        out.put_i64(identity.seen);
        out.put_i32(timeout);
        out.put_i64(identity.session);
        let password: &[u8] = if identity.password.is_empty() { &[0; 16] } else { &identity.password };
        put_bytes(out, password);
        out.put_u8(0);
    })
}

/// The answer to [`hello`]. Servers before 3.4 leave out the last byte.
pub(super) fn welcome(mut from: Bytes) -> Read<Welcome> {
    if int(&mut from)? != 0 {
        return Err(Malformed);
    }
    Ok(Welcome { timeout: int(&mut from)?, session: long(&mut from)?, password: buffer(&mut from)? })
}

/// A request with its length.
pub(super) fn request(number: i32, op: Op, body: &[u8]) -> Bytes {
    framed(|out| {
        out.put_i32(number);
        out.put_i32(op as i32);
        out.put_slice(body);
    })
}

/// Body of a request that only names a node, and says whether to watch it.
pub(super) fn look(path: &str, watch: bool) -> Bytes {
    body(|out| {
        put_bytes(out, path.as_bytes());
        out.put_u8(watch.into());
    })
}

/// Body of [`Op::Auth`] for an account of the scheme `digest`: `NAME:PASSWORD`.
pub(super) fn auth(account: &[u8]) -> Bytes {
    body(|out| {
        out.put_i32(0);
        put_bytes(out, b"digest");
        put_bytes(out, account);
    })
}

/// Body of [`Op::Create`]; `acl` has permissions, scheme and name of each entry.
pub(super) fn create(path: &str, data: &[u8], acl: &[(i32, &str, &str)], ephemeral: bool) -> Bytes {
    body(|out| {
        put_bytes(out, path.as_bytes());
        put_bytes(out, data);
        out.put_i32(acl.len() as i32);
        for (permissions, scheme, name) in acl {
            out.put_i32(*permissions);
            put_bytes(out, scheme.as_bytes());
            put_bytes(out, name.as_bytes());
        }
        out.put_i32(ephemeral.into());
    })
}

/// Body of [`Op::Delete`]; version -1 is any.
pub(super) fn delete(path: &str, version: i32) -> Bytes {
    body(|out| {
        put_bytes(out, path.as_bytes());
        out.put_i32(version);
    })
}

/// Body of [`Op::SetData`].
pub(super) fn set_data(path: &str, data: &[u8], version: i32) -> Bytes {
    body(|out| {
        put_bytes(out, path.as_bytes());
        put_bytes(out, data);
        out.put_i32(version);
    })
}

/// Number, transaction and error of an answer.
pub(super) fn header(mut from: &[u8]) -> Read<(i32, i64, i32)> {
    Ok((int(&mut from)?, long(&mut from)?, int(&mut from)?))
}

/// The path that an event is about; `None` for one about the session.
pub(super) fn event(mut from: Bytes) -> Read<Option<String>> {
    let (kind, _state) = (int(&mut from)?, int(&mut from)?);
    let path = text(&mut from)?;
    Ok((kind > 0).then_some(path))
}

/// The answer to [`Op::GetData`].
pub(super) fn data(mut from: Bytes) -> Read<(Bytes, Stat)> {
    Ok((buffer(&mut from)?, stat(&mut from)?))
}

/// The answer to [`Op::GetChildren2`].
pub(super) fn children(mut from: Bytes) -> Read<(Vec<String>, Stat)> {
    // Each takes four bytes at least: a false number makes no room.
    let count = usize::try_from(int(&mut from)?).map_err(|_| Malformed)?;
    let mut names = Vec::with_capacity(count.min(from.len() / 4));
    for _ in 0..count {
        names.push(text(&mut from)?);
    }
    Ok((names, stat(&mut from)?))
}

/// The answer to [`Op::Exists`], and the end of others.
pub(super) fn stat(from: &mut Bytes) -> Read<Stat> {
    let czxid = long(from)?;
    let _mzxid = long(from)?;
    let (_ctime, _mtime) = (long(from)?, long(from)?);
    let (version, cversion) = (int(from)?, int(from)?);
    let _aversion = int(from)?;
    let owner = long(from)?;
    Ok(Stat { czxid, version, cversion, owner })
}

fn framed(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    out.put_i32(0);
    write(&mut out);
    let length = (out.len() - 4) as i32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

fn body(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    write(&mut out);
    out.freeze()
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_i32(bytes.len() as i32);
    out.put_slice(bytes);
}

fn int(from: &mut impl Buf) -> Read<i32> {
    from.try_get_i32().map_err(|_| Malformed)
}

fn long(from: &mut impl Buf) -> Read<i64> {
    from.try_get_i64().map_err(|_| Malformed)
}

/// Length -1 is Java's null.
fn buffer(from: &mut Bytes) -> Read<Bytes> {
    match usize::try_from(int(from)?) {
        Err(_) => Ok(Bytes::new()),
        Ok(length) if length <= from.len() => Ok(from.split_to(length)),
        Ok(_) => Err(Malformed),
    }
}

fn text(from: &mut Bytes) -> Read<String> {
    String::from_utf8(buffer(from)?.into()).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat_bytes() -> Vec<u8> {
        let mut out = Vec::new();
        for long in [5_i64, 6, 7, 8] {
            out.extend(long.to_be_bytes());
        }
        for int in [9_i32, 10, 11] {
            out.extend(int.to_be_bytes());
        }
        out.extend(12_i64.to_be_bytes());
        out.extend([0; 16]);
        out
    }

    #[test]
    fn answers_are_read_and_cut_ones_refused() {
        let stat = Stat { czxid: 5, version: 9, cversion: 10, owner: 12 };
        let mut raw = vec![0, 0, 0, 2, 0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b', b'c'];
        raw.extend(stat_bytes());
        assert_eq!(children(raw.clone().into()), Ok((vec!["a".into(), "bc".into()], stat)));
        for end in 0..raw.len() - 16 {
            assert_eq!(children(raw[..end].to_vec().into()), Err(Malformed), "cut at {end}");
        }
        let mut raw = vec![0xff; 4];
        raw.extend(stat_bytes());
        assert_eq!(data(raw.into()), Ok((Bytes::new(), stat)), "null");
        assert_eq!(children(vec![0x7f; 64].into()), Err(Malformed), "a false number");
        assert_eq!(data(vec![0x7f; 64].into()), Err(Malformed), "a false length");
        assert_eq!(event(Bytes::from_static(b"\0\0\0\x04\0\0\0\x03\0\0\0\x02/a")), Ok(Some("/a".into())));
        assert_eq!(event(Bytes::from_static(b"\xff\xff\xff\xff\0\0\0\x03\0\0\0\0")), Ok(None));
    }

    #[test]
    fn requests_have_their_length_before_them() {
        let ping = request(PING, Op::Ping, &[]);
        assert_eq!(&ping[..], [0, 0, 0, 8, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 11]);
        assert_eq!(&look("/a", true)[..], b"\0\0\0\x02/a\x01");
        assert_eq!(hello(&Identity::default(), 1000).len(), 4 + 4 + 8 + 4 + 8 + 4 + 16 + 1);
        let old = welcome(Bytes::from_static(b"\0\0\0\0\0\0\x27\x10\0\0\0\0\0\0\0\x07\0\0\0\x01p")).unwrap();
        assert_eq!((old.timeout, old.session, &old.password[..]), (10_000, 7, &b"p"[..]));
    }
}
