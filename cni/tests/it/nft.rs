// SPDX-License-Identifier: Apache-2.0
//! What the kernel holds after a transaction, read back with nft(8).

use cni::nft::{
    ChainKind, Command, Data, DataType, Element, Expr, Family, Hook, MapData, NatKind, Register,
    SetSpec, Socket, Transaction, Verdict,
};
use nftables::schema::{NfListObject, NfObject};

use crate::place::{in_new_host, run};

fn flat_map(name: &str) -> Command {
    Command::AddSet(SetSpec {
        name: name.to_owned(),
        key: vec![
            DataType::Ipv4Addr,
            DataType::InetProto,
            DataType::InetService,
            DataType::Mark,
        ],
        data: Some(MapData::Fields(vec![
            DataType::Ipv4Addr,
            DataType::InetService,
        ])),
    })
}

fn element(slot: u32) -> Element {
    let mut key = vec![10, 43, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0];
    key.extend(slot.to_ne_bytes());
    let data = Data::Value(vec![10, 42, 0, 9, 0x1f, 0x90, 0, 0]);
    Element {
        key,
        data: Some(data),
    }
}

fn ruleset() -> Transaction {
    let mut t = Transaction::new(Family::Inet, "t");
    t.commands.push(Command::AddTable);
    t.base_chain("pre", ChainKind::Nat, Hook::Prerouting, -100);
    t.chain("pick");
    t.commands.push(flat_map("eps"));
    t.commands.push(Command::AddSet(SetSpec {
        name: "svc".to_owned(),
        key: vec![
            DataType::Ipv4Addr,
            DataType::InetProto,
            DataType::InetService,
        ],
        data: Some(MapData::Verdict),
    }));
    let mut rule = Expr::family(true).to_vec();
    rule.extend([
        Expr::daddr(true, Register(0)),
        Expr::l4proto(Register(1)),
        Expr::dport(Register(2)),
        Expr::VerdictMap {
            map: "svc".to_owned(),
            sreg: Register(0),
        },
    ]);
    t.rule("pre", rule);
    t.rule(
        "pick",
        vec![
            Expr::daddr(true, Register(0)),
            Expr::l4proto(Register(1)),
            Expr::dport(Register(2)),
            Expr::Random {
                modulus: 2,
                dreg: Register(3),
            },
            Expr::Map {
                map: "eps".to_owned(),
                sreg: Register(0),
                dreg: Register(4),
            },
            Expr::Nat {
                kind: NatKind::Dnat,
                ipv4: true,
                addr: Register(4),
                port: Register(5),
            },
        ],
    );
    let goto = Data::Verdict(Verdict::Goto("pick".to_owned()));
    t.add(
        "svc",
        vec![Element {
            key: vec![10, 43, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0],
            data: Some(goto),
        }],
    );
    t.add("eps", (0..20).map(element).collect());
    t
}

#[test]
fn nft_reads_back_what_a_transaction_made() {
    in_new_host(|| {
        Socket::open()
            .expect("socket")
            .apply(&ruleset())
            .expect("apply");
        let text = run("nft", &["list", "ruleset"]);
        assert!(
            text.contains("ip daddr . meta l4proto . th dport vmap @svc"),
            "{text}"
        );
        assert!(text.contains("10.43.0.1 . tcp . 80 : goto pick"), "{text}");
        assert!(text.contains("numgen random mod 2"), "{text}");
        assert_eq!(text.matches(": 10.42.0.9 . 8080").count(), 20, "{text}");

        let args = nftables::helper::DEFAULT_ARGS;
        let listed = nftables::helper::get_current_ruleset_with_args(
            nftables::helper::DEFAULT_NFT,
            [args, ["list", "chains"].as_slice()].concat(),
        );
        let chains = listed
            .expect("nft -j")
            .objects
            .iter()
            .filter(|o| matches!(o, NfObject::ListObject(NfListObject::Chain(_))))
            .count();
        assert_eq!(chains, 2);
    });
}

#[test]
fn a_refused_transaction_changes_nothing_and_names_the_command() {
    in_new_host(|| {
        let mut socket = Socket::open().expect("socket");
        socket.apply(&ruleset()).expect("apply");
        let before = run("nft", &["list", "ruleset"]);
        let mut t = Transaction::new(Family::Inet, "t");
        t.delete("eps", vec![element(0).key]);
        t.delete("eps", vec![element(5000).key]);
        t.delete("eps", vec![element(1).key]);
        let error = socket.apply(&t).expect_err("5000 is not there");
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert!(
            error
                .to_string()
                .contains("delete element inet t eps { 0a2b000106000000005000008813"),
            "{error}"
        );
        assert_eq!(run("nft", &["list", "ruleset"]), before);
        socket.delete_table(Family::Inet, "t").expect("delete");
        socket.delete_table(Family::Inet, "t").expect("and again");
        assert_eq!(run("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn an_element_is_replaced_in_one_transaction() {
    in_new_host(|| {
        let mut socket = Socket::open().expect("socket");
        socket.apply(&ruleset()).expect("apply");
        let mut t = Transaction::new(Family::Inet, "t");
        let mut changed = element(0);
        changed.data = Some(Data::Value(vec![10, 42, 0, 7, 0, 81, 0, 0]));
        t.delete("eps", vec![changed.key.clone()]);
        t.add("eps", vec![changed]);
        socket.apply(&t).expect("apply");
        assert!(run("nft", &["list", "ruleset"]).contains("10.42.0.7 . 81"));
    });
}
