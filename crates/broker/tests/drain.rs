//! Clients that are moved off a node.

mod common;
use common::check;

#[test]
fn so_many_are_moved_off_and_nobody_is_let_in() {
    check(
        "
        a> connect id=a v=5
        a< connack sp=0
        a> subscribe id=1 f=t:1
        a< suback 1 01
        b> connect id=b v=4
        b< connack sp=0
        c> connect id=c v=5
        c< connack sp=0
        c> publish t=t q=1 id=5 p=before
        c< puback 5
        drain 1
        -- What it was to get came first.
        a< publish t q1 id=1 before
        a< disconnect 9c
        a! closed
        c> ping
        c< pong
        d> connect id=d v=5
        d< connack 9c
        d! closed
        e> connect id=e v=4
        e< connack 88
        e! closed
        drain 5
        b! closed
        c< disconnect 9c
        c! closed
        count moved_off 3
        drain off
        f> connect id=f v=4
        f< connack sp=0
        ",
    );
}

#[test]
fn a_will_is_put_off_and_forgotten_when_its_client_is_back() {
    check(
        "
        w> connect id=w v=5
        w< connack sp=0
        w> subscribe id=1 f=will/#
        w< suback 1 00
        a> connect id=a v=5 will=will/a
        a< connack sp=0
        b> connect id=b v=4 will=will/b
        b< connack sp=0
        c> connect id=c v=5 will=will/c clean=0 expiry=5
        commit
        c< connack sp=0
        drain 9
        w< disconnect 9c
        a< disconnect 9c
        c< disconnect 9c
        drain off
        w> connect id=w v=5
        w< connack sp=0
        w> subscribe id=1 f=will/#
        w< suback 1 00
        b> connect id=b v=4
        b< connack sp=0
        -- A session that ends has its will with it.
        wait 6000
        w< publish will/c q0 will
        wait 23000
        drain off
        w> ping
        w< pong
        wait 1500
        drain off
        w< publish will/a q0 will
        w> ping
        w< pong
        ",
    );
}
