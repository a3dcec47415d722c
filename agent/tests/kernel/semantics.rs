//! What redirecting does to sockets on this kernel, and what the agent makes of it.

use agent::capture::redirect::selftest::{Check, Consequence, SelfTest};

use crate::need;

/// What is known to differ on the kernels tested so far, with what redirected sockets answer there.
const KNOWN: [(Check, &str); 9] = [
    (Check::OrderOvertaking, "reordered (21)"),
    (Check::CloseUnread, "EOF"),
    (Check::WaitAll, "100"),
    (Check::Signal, "EAGAIN, EAGAIN"),
    (Check::Splice, "EAGAIN"),
    (Check::Zerocopy, "no completion"),
    (Check::LowWater, "readable"),
    (Check::Urgent, "inline"),
    (Check::Delete, "lost (2 left)"),
];

#[test]
fn the_semantics_of_this_kernel_are_the_known_ones() {
    need!("the_semantics_of_this_kernel_are_the_known_ones");
    let report = SelfTest::default().run();
    println!("{}{}", rustix::system::uname().release().to_string_lossy(), '\n');
    println!("{}", report.text());
    assert_eq!(report.error, None);
    assert_eq!(report.rows.len(), Check::ALL.len());
    for row in &report.rows {
        match KNOWN.iter().find(|(check, _)| *check == row.check) {
            Some((_, bad)) => {
                assert_eq!(row.redirected, *bad, "{}", row.check);
                assert!(!row.passed(), "{} is repaired on this kernel: say so in docs/kernel.md", row.check);
            }
            // FIONREAD counted only what came by TCP at first, then only what was redirected, then both.
            None if [Check::SizeTcp, Check::SizeRedirected].contains(&row.check) => {
                assert_eq!(row.plain, "1000");
                assert!(["0", "1000"].contains(&row.redirected.as_str()), "{}", row.redirected);
            }
            None => assert!(row.passed(), "{}: {} became {}", row.check, row.plain, row.redirected),
        }
    }
    let [tcp, redirected] = [Check::SizeTcp, Check::SizeRedirected]
        .map(|check| report.rows.iter().find(|row| row.check == check).unwrap().passed());
    assert!(tcp || redirected, "FIONREAD counts one of both at least");
    match report.refusal() {
        None => assert!(redirected),
        Some(why) => assert!(!redirected && !why.contains(';'), "nothing else that is known turns it off: {why}"),
    }
    assert!(report.implies(Consequence::BlockingStay));
}

#[test]
fn every_check_can_fail_and_has_its_consequence() {
    need!("every_check_can_fail_and_has_its_consequence");
    let plain = SelfTest::default().run().refusal();
    for check in Check::ALL {
        let report = SelfTest { sabotage: Some(check) }.run();
        assert_eq!(report.error, None, "{check}");
        let row = report.rows.iter().find(|row| row.check == check).unwrap();
        assert!(!row.passed(), "{check} does not notice: {row:?}");
        assert_eq!(row.consequence(), Some(check.consequence()));
        let line = report.text().lines().find(|l| l.starts_with(check.text())).unwrap().to_owned();
        assert!(line.ends_with(check.consequence().text()), "{line}");
        if check.consequence() == Consequence::Off {
            let why = report.refusal().unwrap();
            assert!(why.contains(check.text()) && why.contains(&row.redirected), "{why}");
            assert!(report.text().contains("redirect: auto does not redirect on this host: the self-test failed: "));
            assert_eq!(report.json()["ok"], false);
        } else {
            assert_eq!(report.refusal(), plain, "{check} alone turns nothing off");
        }
    }
}
