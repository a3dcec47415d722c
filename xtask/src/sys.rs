//! The only `unsafe` of xtask: signals, process death, waiting, CPUs and namespaces, straight from the kernel.
#![allow(unsafe_code, reason = "system calls that std has no safe form for")]

use std::{
    cell::Cell,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus},
    time::Duration,
};

/// Whether this process has root's rights.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Signals that ask a program to stop.
const STOP: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The stop signals (INT, TERM, HUP), taken as something to wait for instead of something that kills.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    came: Cell<bool>,
}

impl Signals {
    /// Holds the stop signals back from now on, in this thread and in the threads and programs that it will
    /// start; for programs, [`tie`] undoes it.
    pub fn catch() -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before use, and outlives both calls; the
        // descriptor returned by signalfd is fresh and owned by nobody else.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in STOP {
                libc::sigaddset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { fd: OwnedFd::from_raw_fd(fd), came: Cell::new(false) })
        }
    }

    /// Waits for a stop signal, at most `limit`. True once one came, at once and for ever.
    pub fn wait(&self, limit: Duration) -> bool {
        if !self.came.get() && readable(self.fd.as_raw_fd(), limit) {
            // Taken, or it would be waiting still when the signals work again, and end us then.
            let mut taken = [0; size_of::<libc::signalfd_siginfo>()];
            // SAFETY: the buffer is valid for as many bytes as the call is told.
            unsafe { libc::read(self.fd.as_raw_fd(), taken.as_mut_ptr().cast(), taken.len()) };
            self.came.set(true);
        }
        self.came.get()
    }
}

/// Waits until `fd` has something to read (or its other end is gone), at most `limit`.
pub fn readable(fd: i32, limit: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one valid pollfd, and the count says one.
    unsafe { libc::poll(&mut poll, 1, millis) > 0 }
}

/// Waits for the end of a child, at most `limit`; `None` when it still runs then.
pub fn wait_child(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: pidfd_open takes two integers; the descriptor it returns is fresh and owned by nobody else.
    let pidfd = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
    };
    readable(pidfd.as_raw_fd(), limit);
    child.try_wait()
}

/// Sends a signal to a process (or, when negative, to a process group). False when there is none.
pub fn kill(pid: i32, signal: i32) -> bool {
    // SAFETY: kill takes two integers.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Gives the child a process group of its own and the usual signals, lets the kernel send it a signal when
/// this process dies, and puts it into the control group whose `cgroup.procs` is given, all before the
/// program starts.
pub fn tie(command: &mut Command, procs: Option<File>, death_signal: i32) {
    command.process_group(0);
    let parent = std::process::id();
    // SAFETY: between fork and exec only sigprocmask, prctl, getppid and write are called, all of them
    // async-signal-safe, and nothing is allocated; the set is initialised by sigemptyset before use.
    unsafe {
        command.pre_exec(move || {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            if libc::prctl(libc::PR_SET_PDEATHSIG, death_signal) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above: then nobody would ever send the signal.
            if libc::getppid().unsigned_abs() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if let Some(procs) = &procs
                && libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Lets the child leave the terminal's session, so that no key of the user reaches it.
pub fn detach(command: &mut Command) {
    // SAFETY: between fork and exec only setsid is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
}

impl Drop for Signals {
    /// Lets the signals work again; one that came meanwhile and was not waited for takes effect now.
    fn drop(&mut self) {
        // SAFETY: the set is initialised by sigemptyset before use, and outlives the call.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in STOP {
                libc::sigaddset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
    }
}

/// Waits, for those who wait for something that cannot be waited for (a process that is no child).
pub fn pause(time: Duration) {
    let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: no descriptors, and the count says none.
    unsafe { libc::poll(std::ptr::null_mut(), 0, millis) };
}

/// CPUs that this process may run on, by number.
pub fn cpus() -> io::Result<Vec<usize>> {
    // SAFETY: all zeroes are a valid cpu_set_t, and the call writes at most its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Err(io::Error::last_os_error());
        }
        set
    };
    // SAFETY: CPU_ISSET looks at one bit, and the number stays below the size of the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

/// Lets this thread, and what it will start, run on these CPUs only.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: the set is initialised before use; CPU_SET checks the number against the set's size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set))
    }
}

/// Sets the nice value of this process and of what it will start.
pub fn nice(value: i32) -> io::Result<()> {
    // SAFETY: setpriority takes three integers.
    unsafe { check(libc::setpriority(libc::PRIO_PROCESS, 0, value)) }
}

/// Moves this thread into a new network namespace whose loopback device is up. The namespace lives as long
/// as the descriptor, and as what is started in it.
pub fn new_network() -> io::Result<OwnedFd> {
    // SAFETY: unshare takes an integer; all zeroes are a valid ifreq, the name in it ends with zero, and the
    // two ioctls read and write no more than it.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNET))?;
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request))?;
    }
    this_network()
}

/// The network namespace of this thread.
pub fn this_network() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Moves this thread, and what it will start, into that network namespace.
pub fn enter_network(network: &OwnedFd) -> io::Result<()> {
    // SAFETY: setns takes two integers, and the descriptor is open.
    unsafe { check(libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET)) }
}

/// Ticks of a second in `/proc/PID/stat`.
pub fn ticks() -> f64 {
    // SAFETY: sysconf takes an integer.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lines and columns of the terminal that standard output is, if it is one that knows.
pub fn terminal_size() -> Option<(usize, usize)> {
    // SAFETY: all zeroes are a valid winsize, and the call writes at most that.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        (libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) == 0).then_some(size)
    };
    size.map(|size| (size.ws_row.into(), size.ws_col.into())).filter(|(lines, columns)| *lines > 1 && *columns > 1)
}
