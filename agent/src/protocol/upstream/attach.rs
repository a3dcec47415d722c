//! Attachments of a Motan2 call as fields of a head.

use crate::call::{Call, Motan2Head, Text};

/// What the next hop is told: what came, and what this hop adds to every call.
pub(super) fn attachments(call: &Call, head: &Motan2Head, application: &Text, group: &Text) -> Vec<(Text, Text)> {
    let mut pairs: Vec<_> = head.meta.iter().collect();
    let mut add = |key: &'static str, value: Text, replace: bool| match pairs.iter_mut().find(|(k, _)| *k == *key) {
        Some((_, old)) if replace => *old = value,
        Some(_) => {}
        None => pairs.push((Text::from_static(key), value)),
    };
    add("M_rid", Text::from(call.request_id.cast_signed().to_string()), false);
    let source = if call.application.is_empty() { application } else { &call.application };
    if !head.inbound && !source.is_empty() {
        add("M_s", source.clone(), false);
    }
    if !head.inbound && !group.is_empty() {
        add("M_g", group.clone(), true);
    }
    pairs
}

/// The opposite of [`registries::fetch::percent`]; sequences that are none stay as they are. Invalid UTF-8 becomes U+FFFD.
pub(in crate::protocol) fn unpercent(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match hex.filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use registries::fetch::percent;

    use crate::call::Pairs;

    #[test]
    fn codings_go_there_and_back() {
        for text in ["", "a b/ü?#%41", "kit fail: 中文 100%"] {
            assert_eq!(unpercent(&percent(text, "")), text);
        }
        assert_eq!(unpercent("100%"), "100%");
        assert_eq!(unpercent("%4"), "%4");
        assert_eq!(unpercent("%zz中%e4%b8%ad"), "%zz中中");
    }

    #[test]
    fn a_hop_adds_what_it_adds_in_motan2() {
        let mut call = Call::new(Text::from("s"), Text::from("m"));
        call.request_id = 7;
        let meta: Pairs = [("M_g", "old"), ("k", "v")].into_iter().collect();
        let mut head = Motan2Head { meta, ..Motan2Head::default() };
        let of = |head: &Motan2Head| {
            let mut pairs = attachments(&call, head, &Text::from("app"), &Text::from("new"));
            pairs.sort();
            pairs.iter().map(|(k, v)| format!("{}={}", &**k, &**v)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(&head), "M_g=new M_rid=7 M_s=app k=v");
        head.inbound = true;
        assert_eq!(of(&head), "M_g=old M_rid=7 k=v");
    }
}
