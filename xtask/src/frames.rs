//! How much stack the kernel half needs: what older kernels refuse is found without booting them.
//!
//! A chain of calls has 512 bytes. Linux before 6.8 rounds every frame up to 32 bytes, an empty one too; newer
//! ones to 16, so that a program may load here and be refused there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

/// What the kernel allows for a program and all functions that stand on its stack at one time.
const LIMIT: u64 = 512;
/// What Linux before 6.8 rounds a frame up to.
const ROUND: u64 = 32;

/// A place of code: section and offset.
type Place = (usize, u64);

/// A function of the object.
#[derive(Debug, Default)]
struct Function {
    name: String,
    frame: u64,
    calls: BTreeSet<Place>,
}

/// An error when a program of this eBPF object needs more stack than the oldest kernel gives; it names the calls.
pub fn check(object: &[u8]) -> Result<()> {
    let functions = functions(object).context("cannot read the eBPF object")?;
    let mut bad = Vec::new();
    for (place, function) in &functions {
        // Programs have sections of their own, and names that are not mangled.
        if function.name.starts_with("_R") {
            continue;
        }
        let (need, chain) = deepest(&functions, *place, &mut Vec::new());
        if need > LIMIT {
            bad.push(format!("{need} bytes of stack: {}", chain.join(" -> ")));
        }
    }
    if bad.is_empty() {
        return Ok(());
    }
    bail!("kernels before 6.8 give {LIMIT} bytes of stack and would refuse this: {}", bad.join("; "))
}

/// The most that a function and what it calls need at one time, and the calls that do.
fn deepest(functions: &BTreeMap<Place, Function>, at: Place, above: &mut Vec<Place>) -> (u64, Vec<String>) {
    let Some(function) = functions.get(&at) else { return (0, Vec::new()) };
    above.push(at);
    let below = function.calls.iter().filter(|call| !above.contains(call)).copied().collect::<Vec<_>>();
    let below = below.into_iter().map(|call| deepest(functions, call, above)).max_by_key(|(need, _)| *need);
    above.pop();
    let (need, mut chain) = below.unwrap_or_default();
    chain.insert(0, format!("{} ({})", readable(&function.name), function.frame));
    (need + function.frame.max(1).next_multiple_of(ROUND), chain)
}

/// The last name in a mangled one, or the name as it is.
fn readable(name: &str) -> String {
    let Some(mangled) = name.strip_prefix("_R") else { return name.to_owned() };
    // Each part is a length and as many characters; lengths within other parts are of no interest.
    let (mut rest, mut last) = (mangled, "");
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let digits = rest[start..].chars().take_while(char::is_ascii_digit).count();
        let text = &rest[start + digits..];
        match rest[start..start + digits].parse::<usize>() {
            Ok(length) if length > 2 && text.get(..length).is_some_and(|part| part.chars().all(is_name)) => {
                last = &text[..length];
                rest = &text[length..];
            }
            _ => rest = text,
        }
    }
    if last.is_empty() { name.to_owned() } else { last.to_owned() }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What is read of an ELF file of 64 bits, low byte first.
struct Elf<'a> {
    bytes: &'a [u8],
    sections: Vec<Section>,
}

#[derive(Clone, Copy)]
struct Section {
    kind: u64,
    offset: u64,
    size: u64,
    link: usize,
    info: usize,
}

impl<'a> Elf<'a> {
    fn number(&self, at: u64, size: usize) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.bytes.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut elf = Self { bytes, sections: Vec::new() };
        if !bytes.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let (start, each, count) = (elf.number(0x28, 8)?, elf.number(0x3a, 2)?, elf.number(0x3c, 2)?);
        for i in 0..count {
            let at = start + i * each;
            elf.sections.push(Section {
                kind: elf.number(at + 4, 4)?,
                offset: elf.number(at + 24, 8)?,
                size: elf.number(at + 32, 8)?,
                link: usize::try_from(elf.number(at + 40, 4)?).ok()?,
                info: usize::try_from(elf.number(at + 44, 4)?).ok()?,
            });
        }
        Some(elf)
    }

    /// Name, kind, place and size of every symbol.
    fn symbols(&self) -> Option<Vec<(String, u64, Place, u64)>> {
        const SYMBOLS: u64 = 2;
        let table = self.sections.iter().find(|section| section.kind == SYMBOLS)?;
        let names = self.sections.get(table.link)?.offset;
        let symbol = |at: u64| {
            let name = usize::try_from(names + self.number(at, 4)?).ok()?;
            let name = self.bytes.get(name..)?.split(|byte| *byte == 0).next()?;
            let place = (usize::try_from(self.number(at + 6, 2)?).ok()?, self.number(at + 8, 8)?);
            let kind = self.number(at + 4, 1)? & 15;
            Some((String::from_utf8_lossy(name).into_owned(), kind, place, self.number(at + 16, 8)?))
        };
        (table.offset..table.offset + table.size).step_by(24).map(symbol).collect()
    }

    /// The symbol's number by the place that it is to be put in.
    fn relocations(&self) -> Option<BTreeMap<Place, usize>> {
        const RELOCATIONS: u64 = 9;
        let mut all = BTreeMap::new();
        for section in self.sections.iter().filter(|section| section.kind == RELOCATIONS) {
            for at in (section.offset..section.offset + section.size).step_by(16) {
                let symbol = usize::try_from(self.number(at + 8, 8)? >> 32).ok()?;
                all.insert((section.info, self.number(at, 8)?), symbol);
            }
        }
        Some(all)
    }
}

fn functions(object: &[u8]) -> Option<BTreeMap<Place, Function>> {
    const FUNCTION: u64 = 2;
    let elf = Elf::parse(object)?;
    let symbols = elf.symbols()?;
    let relocations = elf.relocations()?;
    let mut functions = BTreeMap::new();
    for (name, _, (section, start), size) in symbols.iter().filter(|(_, kind, ..)| *kind == FUNCTION) {
        let from = usize::try_from(elf.sections.get(*section)?.offset + start).ok()?;
        let code = object.get(from..from + usize::try_from(*size).ok()?)?;
        let (frame, calls) = look(code);
        let place = |(at, distance): (u64, i64)| match relocations.get(&(*section, start + at)) {
            // A symbol of the function's own section stands for its start.
            Some(symbol) => symbols
                .get(*symbol)
                .map(|(_, _, (section, start), _)| (*section, start.wrapping_add_signed((distance + 1) * 8))),
            None => Some((*section, (start + at + 8).wrapping_add_signed(distance * 8))),
        };
        let calls = calls.into_iter().filter_map(place).collect();
        functions.insert((*section, *start), Function { name: name.clone(), frame, calls });
    }
    Some(functions)
}

/// How far below its frame pointer code reaches, and where it calls functions of its own object: offset, and the
/// distance in instructions that stands there.
fn look(code: &[u8]) -> (u64, Vec<(u64, i64)>) {
    const FRAME: u8 = 10;
    const LOAD: u8 = 1;
    const STORES: [u8; 2] = [2, 3];
    const ADD_NUMBER: u8 = 0x07;
    const MOVE: u8 = 0xbf;
    const CALL: u8 = 0x85;
    let mut lowest = 0_i64;
    let mut calls = Vec::new();
    // Registers that hold the frame pointer just now.
    let mut frame = [false; 16];
    for (at, instruction) in (0_u64..).step_by(8).zip(code.chunks_exact(8)) {
        let (operation, to, from) = (instruction[0], instruction[1] & 15, instruction[1] >> 4);
        let offset = i64::from(i16::from_le_bytes([instruction[2], instruction[3]]));
        let number = i64::from(i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]));
        let class = operation & 7;
        match operation {
            MOVE => frame[usize::from(to)] = from == FRAME || frame[usize::from(from)],
            ADD_NUMBER if frame[usize::from(to)] => lowest = lowest.min(number),
            CALL => {
                if from == 1 {
                    calls.push((at, number));
                }
                frame[..6].fill(false);
            }
            _ if class == LOAD && from == FRAME => lowest = lowest.min(offset),
            _ if STORES.contains(&class) && to == FRAME => lowest = lowest.min(offset),
            _ if class == LOAD || class == 0 || class == 7 || class == 4 => frame[usize::from(to)] = false,
            _ => {}
        }
    }
    (lowest.unsigned_abs(), calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_calls_are_read_from_code() {
        let code = [
            [0x7b, 0x1a, 0xf0, 0xff, 0, 0, 0, 0],       // *(u64 *)(r10 - 16) = r1
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],             // r2 = r10
            [0x07, 0x02, 0, 0, 0xc0, 0xff, 0xff, 0xff], // r2 += -64
            [0x85, 0x10, 0, 0, 5, 0, 0, 0],             // call 5 instructions on
            [0x07, 0x02, 0, 0, 0x00, 0xff, 0xff, 0xff], // r2 += -256, no frame pointer any more
            [0x85, 0x00, 0, 0, 1, 0, 0, 0],             // a helper of the kernel
        ]
        .concat();
        assert_eq!(look(&code), (64, vec![(24, 5)]));
    }

    #[test]
    fn the_deepest_chain_counts_with_every_frame_rounded_up() {
        let function = |name: &str, frame: u64, calls: &[u64]| {
            let calls = calls.iter().map(|call| (1, *call)).collect();
            Function { name: name.to_owned(), frame, calls }
        };
        let functions = BTreeMap::from([
            ((1, 0), function("mesh_x", 344, &[8, 16])),
            ((1, 8), function("_RNvNtCs5sN_13sockmesh_ebpf3dns6bring6", 144, &[24])),
            ((1, 16), function("b", 150, &[])),
            // Recursion, which the kernel refuses by itself, ends.
            ((1, 24), function("c", 0, &[8])),
        ]);
        let (need, chain) = deepest(&functions, (1, 0), &mut Vec::new());
        assert_eq!(need, 352 + 160 + 32);
        assert_eq!(chain, ["mesh_x (344)", "bring6 (144)", "c (0)"]);
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(check(b"text").is_err());
    }
}
