//! What can happen at a hook; each is counted.

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What happened at a hook. The number is the index in the table of counters.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Outcome {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Outcome {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Name for operators.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

outcomes! {
    /// connect: brought to the agent.
    Captured = "captured",
    /// connect: one of the agent's own sockets, left alone.
    Own = "own",
    /// connect: the destination is no service, left alone.
    NotService = "not_service",
    /// connect: to a service, by a program that is not enrolled, left alone.
    NotEnrolled = "not_enrolled",
    /// connect: not TCP (UDP, SCTP, ...), left alone.
    NotTcp = "not_tcp",
    /// connect: an inner control group's hook has brought it to the agent already.
    Already = "already",
    /// connect: the agent is stopping, left alone.
    Draining = "draining",
    /// connect: the agent shows no life, left alone.
    StaleDirect = "stale_direct",
    /// connect: the agent shows no life and the service says `on_agent_loss: refuse`, refused.
    StaleRefused = "stale_refused",
    /// connect: no agent listens in the caller's network namespace, left alone.
    NoListener = "no_listener",
    /// connect: no agent listens on IPv6 in the caller's network namespace, left alone.
    NoListener6 = "no_listener6",
    /// connect: the socket is bound to a network device that cannot reach loopback, left alone.
    BoundDevice = "bound_device",
    /// connect: the kernel gave no memory to remember the destination, left alone.
    NoStorage = "no_storage",
    /// connect: the table of connections on their way to the agent is full, left alone.
    Full = "full",
    /// connect: a control slot could not be read, left alone. Never expected.
    NoControl = "no_control",
    /// TCP: recorded for the agent's accept.
    Recorded = "recorded",
    /// TCP: could not be recorded; the agent will close the connection. Never expected.
    RecordLost = "record_lost",
    /// lookup: a connection from elsewhere, brought to the agent.
    Inbound = "inbound",
    /// lookup: for a captured service, but the agent shows no life or is stopping: left to the program.
    InboundDirect = "inbound_direct",
    /// lookup: for a captured service, but the agent has no listener of that family: left to the program.
    InboundNoListener = "inbound_no_listener",
    /// getpeername: answered with the address that the program asked for.
    Peername = "peername",
    /// getpeername, accept: answered with the address of the caller on whose behalf the agent called.
    ClientShown = "client_shown",
    /// connect: sent straight to an endpoint.
    Balanced = "balanced",
    /// connect: the service's rules do not let this program through, refused.
    PolicyRefused = "policy_refused",
    /// connect: the service has no endpoint that the socket could dial, left alone.
    NoEndpoint = "no_endpoint",
    /// connect: as before, but the service says `on_agent_loss: refuse`, refused.
    NoEndpointRefused = "no_endpoint_refused",
    /// connect: as before, because the socket is IPv6-only and the service has IPv4 endpoints only.
    V6Only = "v6_only",
    /// TCP: no room in the list of connections that went straight to an endpoint; it works all the same.
    Unlisted = "unlisted",
    /// TCP: no room for the counters of one more caller.
    Uncounted = "uncounted",
    /// UDP: a question for a name, brought to the agent.
    Asked = "asked",
    /// UDP: a question for a name to more resolvers than there is room for, left alone.
    ResolversFull = "resolvers_full",
    /// UDP: an answer, shown as coming from the resolver that was asked.
    Resolved = "resolved",
    /// connect: captured; stays on TCP until somebody has looked at the program file.
    UnknownProgram = "unknown_program",
    /// TCP: a socket can be redirected to from now on.
    Paired = "paired",
    /// TCP: the table of sockets is full, the connection stays on TCP.
    PairFull = "pair_full",
    /// TCP: another program's table of sockets has this one, the connection stays on TCP.
    PairBusy = "pair_busy",
    /// TCP: the kernel did not take the socket for another reason, the connection stays on TCP.
    PairFailed = "pair_failed",
    /// message: redirected.
    Redirected = "redirected",
    /// message: by TCP, redirect is switched off.
    RedirectOff = "redirect_off",
    /// message: by TCP, the other end is not (or no longer) in the table of sockets.
    RedirectNoPeer = "redirect_no_peer",
    /// message: by TCP, because bytes that went by TCP before are unread and must not be overtaken.
    RedirectUnread = "redirect_unread",
    /// message: by TCP, the reader has not read what was redirected before.
    RedirectFull = "redirect_full",
    /// message: by TCP, one of the two programs asked for something that redirect cannot keep.
    RedirectAsked = "redirect_asked",
    /// setsockopt: a program asked for something that redirect cannot keep.
    OptionAsked = "option_asked",
}

impl Outcome {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indexes_and_names_are_unique() {
        for (i, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, i);
            assert_eq!(Outcome::ALL.iter().filter(|o| o.name() == outcome.name()).count(), 1);
        }
    }
}
