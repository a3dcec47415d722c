//! Three real ZooKeeper servers that elect a leader.

use std::{fs, net::SocketAddr};

use rustix::process::Signal;

use crate::{
    Temp,
    net::{free_addr, free_port},
    program::Server,
    until,
    zookeeper::{Client, TICK, java, word},
};

/// Members of the ensemble.
pub const MEMBERS: usize = 3;

/// The servers; each holds everything.
pub struct Ensemble {
    members: Vec<Server>,
}

impl Ensemble {
    /// Starts one with an empty tree and waits until all of it serves.
    #[track_caller]
    pub fn start() -> Self {
        let peers: Vec<(u16, u16)> = (0..MEMBERS).map(|_| (free_port(), free_port())).collect();
        let all: String =
            (1..).zip(&peers).map(|(id, (peer, vote))| format!("server.{id}=127.0.0.1:{peer}:{vote}\n")).collect();
        let start = |id: usize| {
            let (dir, addr) = (Temp::new(), free_addr());
            let data = dir.file("data");
            fs::create_dir_all(&data).unwrap();
            fs::write(data.join("myid"), format!("{id}\n")).unwrap();
            let config = format!(
                "tickTime={TICK}\ninitLimit=20\nsyncLimit=8\ndataDir={}\nclientPort={}\nclientPortAddress={}\n\
                 admin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n{all}",
                data.display(),
                addr.port(),
                addr.ip()
            );
            let file = dir.write("zoo.cfg", config);
            let cmd = java().args(["-Xmx128m", "-XX:TieredStopAtLevel=1"]);
            let cmd = cmd.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(file.display());
            Server::start(addr, dir, cmd)
        };
        let it = Self { members: (1..=MEMBERS).map(start).collect() };
        (0..MEMBERS).for_each(|i| it.serves(i));
        it
    }

    /// Addresses of all members, as an agent's option has them.
    pub fn addresses(&self) -> String {
        self.members.iter().map(|m| m.addr().to_string()).collect::<Vec<_>>().join(",")
    }

    /// Where a member serves.
    pub fn addr(&self, member: usize) -> SocketAddr {
        self.members[member].addr()
    }

    /// `leader`, `follower`, or nothing for one that does not serve.
    pub fn mode(&self, member: usize) -> Option<String> {
        let said = word(self.addr(member), "srvr").ok()?;
        said.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    }

    /// The member that leads now, waited for.
    #[track_caller]
    pub fn leader(&self) -> usize {
        crate::until_some("the ensemble has a leader", || {
            (0..MEMBERS).find(|&i| self.mode(i).as_deref() == Some("leader"))
        })
    }

    /// Waits until a member serves.
    #[track_caller]
    pub fn serves(&self, member: usize) {
        until(&format!("member {member} serves"), || self.mode(member).is_some());
    }

    /// A client of a member, which must serve.
    pub fn client(&self, member: usize) -> Client {
        Client::open(self.addr(member))
    }

    /// Whether a member has connections that are sessions.
    pub fn is_used(&self, member: usize) -> bool {
        word(self.addr(member), "cons").is_ok_and(|said| said.contains("sid=0x"))
    }

    /// Ends a member on the spot.
    pub fn kill(&mut self, member: usize) {
        self.members[member].proc.signal(Signal::KILL);
        self.members[member].proc.wait();
    }

    /// Starts one again with what it knew. It need not serve yet.
    #[track_caller]
    pub fn again(&mut self, member: usize) {
        self.members[member].again();
    }

    /// Stops a member from doing anything, or lets it go on.
    pub fn signal(&self, member: usize, signal: Signal) {
        self.members[member].proc.signal(signal);
    }
}
