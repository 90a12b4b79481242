//! How a session ends: by agreement, by one side, by the link; and what it says ever after.

mod support;

use std::time::Duration;

use support::*;
use virbistream::proto::{Event, OpenError, SessionError, StreamError};
use virbistream::wire::{Decoder, Rule, close, codes};

const SECOND: Duration = Duration::from_secs(1);

fn pair() -> Pair {
    Pair::established(small(), small())
}

#[test]
fn close_without_streams_ends_both_ends_at_once() {
    for closer in End::BOTH {
        let mut pair = pair();
        pair.close(closer);
        assert_eq!(pair.at(closer).closed, Some(Ok(())));
        assert!(!pair.at(closer).session.is_finished(), "CLOSE is still to be sent");
        pair.settle();
        for end in End::BOTH {
            assert_eq!(pair.at(end).closed, Some(Ok(())));
            assert!(pair.at(end).session.is_finished());
            assert_eq!(pair.at(end).session.poll_timeout(), None);
        }
        assert_eq!(pair.at(closer.other()).ledger.heard_close, Some(close::DONE));
    }
}

#[test]
fn close_lets_the_streams_finish_and_ends_with_the_last() {
    for closer in End::BOTH {
        let mut pair = pair();
        let ids = [pair.opened(End::Connecting, open("vda")), pair.opened(End::Accepting, open("vdb"))];
        pair.close(closer);
        pair.settle();
        assert_eq!(pair.at(closer.other()).events.last(), Some(&Event::Draining));
        for end in End::BOTH {
            assert!(!pair.at(end).session.is_closed() && !pair.at(end).session.is_established());
            assert_eq!(pair.open(end, open("vdc")), Err(OpenError::Closing));
        }
        for id in ids {
            for end in End::BOTH {
                assert_eq!(pair.at(end).closed, None);
                pair.write(end, id, 50_000);
                pair.finish(end, id);
            }
            pair.settle();
            pair.assert_over(id);
        }
        for end in End::BOTH {
            assert_eq!(pair.at(end).closed, Some(Ok(())));
            assert!(pair.at(end).session.is_finished());
        }
    }
}

#[test]
fn both_close_at_once() {
    let mut pair = pair();
    let id = pair.opened(End::Connecting, open("vda"));
    for end in End::BOTH {
        pair.close(end);
        pair.close(end);
        pair.transmit(end, 0);
    }
    pair.settle();
    for end in End::BOTH {
        assert!(!pair.at(end).events.contains(&Event::Draining), "it knows");
        pair.finish(end, id);
    }
    pair.settle();
    pair.assert_over(id);
    assert!(End::BOTH.iter().all(|end| pair.at(*end).closed == Some(Ok(()))));
}

#[test]
fn a_stream_that_fails_while_draining_ends_the_session_too() {
    let mut pair = pair();
    let id = pair.opened(End::Connecting, open("vda"));
    pair.close(End::Connecting);
    pair.settle();
    pair.reset(End::Accepting, id);
    pair.settle();
    assert!(End::BOTH.iter().all(|end| pair.at(*end).closed == Some(Ok(()))));
}

#[test]
fn an_open_under_way_to_a_closing_side_is_refused() {
    for closer in End::BOTH {
        let mut pair = pair();
        let living = pair.opened(closer, open("vda"));
        let id = pair.open(closer.other(), open("vdb")).unwrap();
        pair.close(closer);
        pair.settle();
        let StreamError::Refused(why) = pair.failure(closer.other(), id) else { panic!() };
        assert_eq!((why.code, why.int2), (codes::OPERATION_INVALID, Rule::Closing.number() as i32));
        for end in End::BOTH {
            pair.finish(end, living);
        }
        pair.settle();
        pair.assert_over(living);
        assert!(End::BOTH.iter().all(|end| pair.at(*end).closed == Some(Ok(()))));
    }
}

#[test]
fn an_answer_that_is_owed_is_still_given_while_draining() {
    for accepted in [true, false] {
        let mut pair = pair();
        pair.at_mut(End::Accepting).accepts = false;
        let id = pair.open(End::Connecting, open("vda")).unwrap();
        pair.settle();
        pair.close(End::Accepting);
        pair.settle();
        if accepted {
            pair.accept(End::Accepting, id);
            pair.settle();
            End::BOTH.iter().for_each(|end| pair.finish(*end, id));
        } else {
            pair.refuse(End::Accepting, id);
        }
        pair.settle();
        assert!(End::BOTH.iter().all(|end| pair.at(*end).closed == Some(Ok(()))));
    }
}

#[test]
fn shutdown_ends_both_ends_at_once_streams_and_all() {
    for ender in End::BOTH {
        let mut pair = pair();
        let id = pair.opened(End::Connecting, open("vda"));
        pair.write(ender, id, 50_000);
        pair.shutdown(ender);
        pair.settle();
        let ours = SessionError::Shutdown("enough".into());
        assert_eq!(*pair.failure(ender, id), StreamError::Session(ours.clone()));
        assert_eq!(pair.at(ender).closed, Some(Err(ours)));
        let Some(Err(theirs)) = pair.at(ender.other()).closed.clone() else { panic!() };
        let SessionError::PeerClosed { code, rule, text } = &theirs else { panic!("{theirs:?}") };
        assert_eq!((*code, *rule), (close::SHUTDOWN, 0));
        assert!(text.contains("enough"), "{text}");
        assert_eq!(*pair.failure(ender.other(), id), StreamError::Session(theirs));
    }
}

#[test]
fn any_code_but_0_is_the_end_an_unknown_one_too() {
    for code in [1, 2, 3, 4, 5, 6, 4711, u32::MAX] {
        for side in SIDES {
            let mut probe = Probe::established(side, small());
            let id = probe.opened();
            probe.send(id, b"abc");
            probe.stream(id).stop().unwrap();
            probe.news();
            let error = probe.try_hear(&Packet::close(code, 14, "so there")).unwrap_err();
            assert_eq!(error, SessionError::PeerClosed { code, rule: 14, text: "so there".into() });
            let news = probe.news();
            assert!(matches!(&news[..], [Event::Failed { .. }, Event::Closed(Err(cause))] if *cause == error));
            assert_eq!(probe.speak(), [], "nothing is owed to who has gone");
            assert!(probe.session.is_finished());
        }
    }
}

/// The peer may have ended the link before the OPEN came.
#[test]
fn an_open_that_crossed_the_peers_close_is_no_lost_link() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        let id = probe.ask(open("vda"));
        let unsaid = probe.session.open(probe.now, open("vdb")).unwrap();
        probe.hear(&Packet::close(close::DONE, 0, ""));
        probe.news();
        probe.session.handle_link_ended("the peer closed the connection");
        let news = probe.news();
        let failed = |n: usize, id: u32| matches!(&news[n], Event::Failed { id: which, error: StreamError::Closing, .. } if which.number() == id);
        assert!(failed(0, id) && failed(1, unsaid.number()), "{news:?}");
        assert_eq!(news[2..], [Event::Closed(Ok(()))]);
    }
}

#[test]
fn a_link_that_breaks_is_lost_whatever_was_said() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        probe.ask(open("vda"));
        probe.hear(&Packet::close(close::DONE, 0, ""));
        probe.session.handle_link_lost("cut");
        assert_eq!(probe.news().pop(), Some(Event::Closed(Err(SessionError::LinkLost("cut".into())))));
    }
}

#[test]
fn a_link_that_ends_under_a_stream_is_lost_even_behind_close() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        probe.opened();
        probe.ask(open("vda"));
        probe.hear(&Packet::close(close::DONE, 0, ""));
        probe.session.handle_link_ended("cut");
        assert_eq!(probe.news().pop(), Some(Event::Closed(Err(SessionError::LinkLost("cut".into())))));
    }
}

#[test]
fn the_text_of_close_may_be_any_bytes() {
    let body = [&[0; 3][..], &[3], &[0; 4], &[0, 0, 0, 4, 0xff, 0xfe, 0, 0x80]].concat();
    let mut probe = Probe::established(SIDES[0], small());
    let error = probe.hear_bytes(&raw(7, 2, 0, 0, &body)).unwrap_err();
    assert!(matches!(error, SessionError::PeerClosed { code: 3, .. }), "{error:?}");
    for rule in [0, 1] {
        let mut probe = Probe::established(SIDES[0], small());
        let error = probe.try_hear(&Packet::close(close::VIOLATION, rule, "\u{1b}[2Jready\n")).unwrap_err();
        assert!(!error.to_string().contains(char::is_control), "{error} speaks to the terminal");
    }
}

#[test]
fn a_lost_link_fails_every_stream_at_both_ends() {
    let mut pair = pair();
    let ids = [pair.opened(End::Connecting, open("vda")), pair.opened(End::Accepting, open("vdb"))];
    pair.write(End::Connecting, ids[0], 50_000);
    pair.transmit(End::Connecting, 1);
    pair.lose_link();
    let cause = SessionError::LinkLost("gone".into());
    for end in End::BOTH {
        assert_eq!(pair.at(end).closed, Some(Err(cause.clone())));
        ids.iter().for_each(|id| assert_eq!(*pair.failure(end, *id), StreamError::Session(cause.clone())));
        assert!(pair.at(end).session.is_finished() && !pair.at_mut(end).session.wants_to_send());
        assert_eq!(pair.at(end).session.granted(), 0);
    }
}

/// Every way to end it, and the cause that it leaves.
#[test]
fn the_first_cause_stays_for_ever() {
    type End = fn(&mut Probe);
    let ends: [(&str, End); 6] = [
        ("a rule", |probe| _ = probe.try_hear(&Packet::Stop(99))),
        ("framing", |probe| _ = probe.hear_bytes(b"GET / HTTP/1.1\r\n")),
        ("the peer", |probe| _ = probe.try_hear(&Packet::close(close::INTERNAL, 0, "oops"))),
        ("silence", |probe| probe.pass(30 * SECOND)),
        ("the owner", |probe| probe.session.shutdown("enough")),
        ("the link", |probe| probe.session.handle_link_lost("cut")),
    ];
    for side in SIDES {
        for (what, end) in &ends {
            let mut probe = Probe::established(side, small());
            let id = probe.opened();
            let stream = probe.session.open(probe.now, open("vdb")).unwrap();
            probe.news();
            end(&mut probe);
            let mut news = probe.news();
            let Some(Event::Closed(Err(cause))) = news.pop() else { panic!("{what}: {news:?}") };
            assert_eq!(news.len(), 2, "{what}: both streams have failed");
            let last = probe.speak();
            assert!(last.len() <= 1 && last.iter().all(|said| matches!(said, Packet::Close(_))), "{what}: {last:?}");

            for (_, again) in &ends {
                again(&mut probe);
            }
            probe.session.close();
            let header = Packet::Ping(1).header();
            assert_eq!(probe.session.handle_header(probe.now, &header, 8), Err(cause.clone()), "{what}");
            assert_eq!(probe.session.handle_payload(probe.now, &[0; 8], 0), Err(cause.clone()), "{what}");
            assert_eq!(probe.session.handle_packet(probe.now, &header, &[0; 8]), Err(cause.clone()), "{what}");
            let framing = Decoder::new(28).decode(&mut &[0; 28][..]).unwrap_err();
            assert_eq!(probe.session.handle_framing_error(framing), cause, "{what}");
            assert_eq!(probe.session.open(probe.now, open("vdc")), Err(OpenError::NotEstablished));
            assert!(!probe.has_stream(id) && probe.session.stream(stream).is_none());
            assert_eq!((probe.session.stream_count(), probe.session.granted()), (0, 0), "{what}");
            assert_eq!((probe.speak(), probe.news()), (vec![], vec![]), "{what}");
            assert!(probe.session.is_finished() && !probe.session.wants_to_send(), "{what}");
            assert_eq!(probe.session.poll_timeout(), None, "{what}");
        }
    }
}

#[test]
fn a_session_that_ended_by_agreement_takes_nothing_more() {
    let mut probe = Probe::established(SIDES[1], small());
    probe.session.close();
    probe.speak();
    assert_eq!(probe.news().pop(), Some(Event::Closed(Ok(()))));
    let first = probe.try_hear(&Packet::Open(1, open("vda"))).unwrap_err();
    let second = probe.try_hear(&Packet::close(close::SHUTDOWN, 0, "")).unwrap_err();
    assert_eq!((first, second), (SessionError::Closed, SessionError::Closed));
    probe.session.handle_link_lost("the peer has gone, as it may");
    probe.session.shutdown("too late");
    probe.pass(3600 * SECOND);
    assert_eq!((probe.speak(), probe.news()), (vec![], vec![]));
}
