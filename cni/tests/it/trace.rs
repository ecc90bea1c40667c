// SPDX-License-Identifier: Apache-2.0
//! A packet is followed through rules, and rules say what they are for.

use std::time::{Duration, Instant};

use cni::nft::{
    ChainKind, CmpOp, Command, Ended, Event, Expr, Family, Hook, Register, Socket, Step, Tracer,
    Transaction, Verdict,
};

use crate::place::{ask_udp, in_new_host, run, serve_udp};

fn rules() -> Transaction {
    let mut t = Transaction::new(Family::Inet, "t");
    t.commands.push(Command::AddTable);
    t.base_chain("out", ChainKind::Filter, Hook::Output, 0);
    t.chain("inner");
    let to_server = vec![
        Expr::dport(Register(0)),
        Expr::Cmp {
            op: CmpOp::Eq,
            sreg: Register(0),
            data: 53_u16.to_be_bytes().to_vec(),
        },
    ];
    let with = |last: Expr| [to_server.clone(), vec![last]].concat();
    t.commented_rule("out", "is followed", with(Expr::Trace));
    let jump = Expr::Verdict(Verdict::Jump("inner".to_owned()));
    t.commented_rule("out", "has a chain of its own", with(jump));
    t.rule("out", with(Expr::Verdict(Verdict::Accept)));
    t.commented_rule("inner", "goes back", vec![Expr::Verdict(Verdict::Return)]);
    t
}

#[test]
fn a_packet_is_followed_from_rule_to_rule() {
    in_new_host(|| {
        let mut socket = Socket::open().expect("a socket");
        socket.apply(&rules()).expect("the rules");
        let known = socket.rules(Family::Inet, "t").expect("the rules again");
        assert_eq!(known.len(), 4);
        assert_eq!(known[0].comment.as_deref(), Some("is followed"));
        assert_eq!(known[2].comment, None);
        assert!(known[0].expressions.contains(&"cmp".to_owned()));
        assert_eq!(socket.rules(Family::Inet, "none").expect("no table"), []);
        let listed = run("nft", &["list", "table", "inet", "t"]);
        assert!(listed.contains("meta nftrace set 1"), "{listed}");
        assert!(listed.contains("comment \"is followed\""), "{listed}");

        let tracer = Tracer::open().expect("a tracer");
        serve_udp(([127, 0, 0, 1], 53).into(), "server");
        let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        ask_udp(&client, ([127, 0, 0, 1], 53).into()).expect("an answer");
        let (mut steps, start) = (Vec::<Step>::new(), Instant::now());
        while steps.len() < 4 && start.elapsed() < Duration::from_secs(10) {
            steps.extend(tracer.next(Duration::from_secs(1)).expect("steps"));
        }
        let comment = |step: &Step| {
            let Event::Rule { handle, .. } = step.event else {
                return None;
            };
            known
                .iter()
                .find(|rule| rule.handle == handle)?
                .comment
                .clone()
        };
        let said: Vec<_> = steps.iter().map(comment).collect();
        let words = |text: &str| Some(text.to_owned());
        let expected = [
            words("is followed"),
            words("has a chain of its own"),
            words("goes back"),
            None,
        ];
        assert_eq!(said, expected, "{steps:?}");
        let flow = steps[0].flow.expect("the headers");
        assert_eq!((flow.protocol, flow.ports.1), (17, 53));
        assert_eq!(flow.destination, std::net::IpAddr::from([127, 0, 0, 1]));
        let ended = |step: &Step| match &step.event {
            Event::Rule { ended, .. } => Some(ended.clone()),
            _ => None,
        };
        assert_eq!(ended(&steps[0]), Some(Ended::Continue));
        assert_eq!(ended(&steps[3]), Some(Ended::Verdict(Verdict::Accept)));
        assert_eq!(steps[0].oif, 1);
    });
}
