/* What programs may do with their sockets through io_uring, by the bare system calls, in the manner of tests/rows:
 *
 *   rings list                                  names the rows; exit 77 where the kernel does not let us
 *   rings ROW LISTEN DIAL LISTEN6 DIAL6         performs one: a line for each thing that it saw
 *   rings hold blocking|polling LISTEN DIAL ... uses a connection both ways and keeps it, and its ring, open
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What has to happen happens within this, what has not happened within that does not happen. */
enum { LIMIT_MS = 30000, NEVER_MS = 500 };

static void fail(const char *what) {
  int error = errno;
  perror(what);
  exit(error == ENOSYS || error == EPERM ? 77 : 1);
}

static void lost(const char *what) {
  fprintf(stderr, "error: %s\n", what);
  exit(1);
}

/* A ring. */

struct ring {
  int fd;
  unsigned *sq_tail, *sq_flags, *sq_array, sq_mask;
  unsigned *cq_head, *cq_tail, cq_mask;
  struct io_uring_sqe *sqes;
  struct io_uring_cqe *cqes;
  unsigned waiting, polled;
};

static void ring_open(struct ring *r, unsigned setup) {
  struct io_uring_params p = {.flags = setup, .sq_thread_idle = 1000};
  memset(r, 0, sizeof *r);
  r->fd = syscall(SYS_io_uring_setup, 64, &p);
  if (r->fd < 0) fail("io_uring_setup");
  int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
  char *sq = mmap(0, p.sq_off.array + p.sq_entries * sizeof(unsigned), prot, flags, r->fd, IORING_OFF_SQ_RING);
  char *cq = mmap(0, p.cq_off.cqes + p.cq_entries * sizeof *r->cqes, prot, flags, r->fd, IORING_OFF_CQ_RING);
  r->sqes = mmap(0, p.sq_entries * sizeof *r->sqes, prot, flags, r->fd, IORING_OFF_SQES);
  if (sq == MAP_FAILED || cq == MAP_FAILED || (void *)r->sqes == MAP_FAILED) fail("mmap");
  r->sq_tail = (unsigned *)(sq + p.sq_off.tail);
  r->sq_flags = (unsigned *)(sq + p.sq_off.flags);
  r->sq_array = (unsigned *)(sq + p.sq_off.array);
  r->sq_mask = *(unsigned *)(sq + p.sq_off.ring_mask);
  r->cq_head = (unsigned *)(cq + p.cq_off.head);
  r->cq_tail = (unsigned *)(cq + p.cq_off.tail);
  r->cq_mask = *(unsigned *)(cq + p.cq_off.ring_mask);
  r->cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
  r->polled = setup & IORING_SETUP_SQPOLL;
}

/* The next entry, which the next `submit` hands over. */
static struct io_uring_sqe *next(struct ring *r, int op, int fd, const void *addr, unsigned len, unsigned long data) {
  unsigned tail = *r->sq_tail, at = tail & r->sq_mask;
  struct io_uring_sqe *sqe = &r->sqes[at];
  memset(sqe, 0, sizeof *sqe);
  sqe->opcode = op;
  sqe->fd = fd;
  sqe->addr = (unsigned long)addr;
  sqe->len = len;
  sqe->user_data = data;
  r->sq_array[at] = at;
  /* Read by the kernel's thread at once where there is one, so it is released by `submit`. */
  r->waiting++;
  if (!r->polled) __atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
  return sqe;
}

static void submit(struct ring *r) {
  unsigned flags = 0, count = r->waiting;
  r->waiting = 0;
  if (r->polled) {
    if (count != 1) lost("one at a time with a thread of the kernel");
    __atomic_store_n(r->sq_tail, *r->sq_tail + 1, __ATOMIC_SEQ_CST);
    if (!(__atomic_load_n(r->sq_flags, __ATOMIC_SEQ_CST) & IORING_SQ_NEED_WAKEUP)) return;
    flags = IORING_ENTER_SQ_WAKEUP;
  }
  if (syscall(SYS_io_uring_enter, r->fd, count, 0, flags, 0, 0) < 0) fail("io_uring_enter");
}

/* What has completed. */
struct done {
  unsigned long user_data;
  int res;
  unsigned flags;
};

/* The next completion within the time; 0 when there is none. */
static int take(struct ring *r, struct done *to, int ms) {
  for (;;) {
    unsigned head = *r->cq_head;
    if (head != __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE)) {
      struct io_uring_cqe *cqe = &r->cqes[head & r->cq_mask];
      *to = (struct done){cqe->user_data, cqe->res, cqe->flags};
      __atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
      return 1;
    }
    struct __kernel_timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    struct io_uring_getevents_arg arg = {.ts = (unsigned long)&time};
    int flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    if (syscall(SYS_io_uring_enter, r->fd, 0, 1, flags, &arg, sizeof arg) < 0) {
      if (errno == ETIME) return 0;
      if (errno != EINTR) fail("io_uring_enter");
    }
  }
}

/* The completion of the only thing that is under way. */
static struct done one(struct ring *r) {
  struct done cqe;
  submit(r);
  if (!take(r, &cqe, LIMIT_MS)) lost("nothing completes");
  return cqe;
}

static const char *result(int res) {
  static char text[4][64];
  static int turn;
  char *to = text[turn++ % 4];
  if (res == 0) return "EOF";
  if (res > 0) snprintf(to, 64, "%d", res);
  else if (strerrorname_np(-res)) snprintf(to, 64, "%s", strerrorname_np(-res));
  else snprintf(to, 64, "error %d", -res);
  return to;
}

/* Both ends of a connection. */

struct road {
  struct sockaddr_storage listen, dial;
};

static struct road roads[2];

static void address(struct sockaddr_storage *to, const char *text) {
  char host[128];
  snprintf(host, sizeof host, "%s", text[0] == '[' ? text + 1 : text);
  char *colon = strrchr(host, ':');
  if (!colon) lost("an address is HOST:PORT");
  int port = atoi(colon + 1);
  *colon = 0;
  if (colon > host && colon[-1] == ']') colon[-1] = 0;
  memset(to, 0, sizeof *to);
  struct sockaddr_in *four = (void *)to;
  struct sockaddr_in6 *six = (void *)to;
  if (inet_pton(AF_INET, host, &four->sin_addr) == 1) four->sin_family = AF_INET, four->sin_port = htons(port);
  else if (inet_pton(AF_INET6, host, &six->sin6_addr) == 1) six->sin6_family = AF_INET6, six->sin6_port = htons(port);
  else lost("no address");
}

static socklen_t length(const struct sockaddr_storage *a) {
  return a->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static int listening(const struct road *road) {
  int fd = socket(road->listen.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
  if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes)) fail("SO_REUSEADDR");
  if (bind(fd, (void *)&road->listen, length(&road->listen))) fail("bind");
  if (listen(fd, 16)) fail("listen");
  return fd;
}

struct pair {
  int ends[2];
};

static struct pair connected(int flags) {
  int listener = listening(&roads[0]);
  struct pair pair = {{socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0), -1}};
  if (connect(pair.ends[0], (void *)&roads[0].dial, length(&roads[0].dial)) && errno != EINPROGRESS) fail("connect");
  pair.ends[1] = accept4(listener, 0, 0, SOCK_CLOEXEC | flags);
  if (pair.ends[1] < 0) fail("accept");
  /* One that does not block may not be there yet. */
  struct pollfd ready = {.fd = pair.ends[0], .events = POLLOUT};
  if (poll(&ready, 1, LIMIT_MS) != 1) lost("not connected");
  close(listener);
  return pair;
}

static const char *WAYS[] = {"up", "down"};

/* Byte number `at` of the endless pattern: a prime as its period, so that no buffer's size divides it. */
static unsigned char byte(unsigned long at) {
  unsigned x = at % 65521;
  return x ^ x >> 8 ^ x * 7;
}

static void fill(unsigned char *to, unsigned long from, unsigned long len) {
  for (unsigned long i = 0; i < len; i++) to[i] = byte(from + i);
}

static int intact(const unsigned char *what, unsigned long from, unsigned long len) {
  for (unsigned long i = 0; i < len; i++)
    if (what[i] != byte(from + i)) return 0;
  return 1;
}

enum { ROOM = 65536 };
static unsigned char out[ROOM], in[ROOM];

/* Sends by the system call. */
static void send_plain(int fd, unsigned len) {
  fill(out, 0, len);
  if (send(fd, out, len, MSG_NOSIGNAL) != (ssize_t)len) fail("send");
}

/* Waits until FIONREAD tells of as much. */
static void arrived(int fd, int len) {
  for (int there = 0, turns = 0; there < len; turns++) {
    if (ioctl(fd, FIONREAD, &there)) fail("FIONREAD");
    if (turns > LIMIT_MS) lost("bytes do not arrive");
    if (there < len) poll(0, 0, 1);
  }
}

/* Reads `len` bytes through the ring; what became of it. */
static const char *read_all(struct ring *r, int fd, unsigned long len) {
  unsigned long got = 0;
  while (got < len) {
    unsigned room = len - got < ROOM ? len - got : ROOM;
    next(r, IORING_OP_RECV, fd, in, room, 1);
    struct done cqe = one(r);
    if (cqe.res <= 0) return result(cqe.res);
    if (!intact(in, got, cqe.res)) return "other bytes";
    got += cqe.res;
  }
  return "all, intact";
}

/* Rows. */

static void each_way(struct ring *r, void (*row)(struct ring *, const char *, int, int)) {
  struct pair pair = connected(0);
  for (int way = 0; way < 2; way++) row(r, WAYS[way], pair.ends[way], pair.ends[1 - way]);
}

static void row_send(struct ring *r, const char *way, int from, int to) {
  fill(out, 0, 20000);
  next(r, IORING_OP_SEND, from, out, 20000, 1)->msg_flags = MSG_NOSIGNAL;
  printf("%s sent: %s\n", way, result(one(r).res));
  printf("%s read: %s\n", way, read_all(r, to, 20000));
}

static void row_vectors(struct ring *r, const char *way, int from, int to) {
  fill(out, 0, 3000);
  struct iovec parts[3] = {{out, 700}, {out + 700, 1300}, {out + 2000, 1000}};
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
  next(r, IORING_OP_SENDMSG, from, &message, 1, 1)->msg_flags = MSG_NOSIGNAL;
  printf("%s sent: %s\n", way, result(one(r).res));
  arrived(to, 3000);
  struct iovec places[2] = {{in, 1000}, {in + 1000, 3000}};
  struct msghdr got = {.msg_iov = places, .msg_iovlen = 2};
  next(r, IORING_OP_RECVMSG, to, &got, 1, 1);
  int res = one(r).res;
  printf("%s read: %s, %s\n", way, result(res), res > 0 && intact(in, 0, res) ? "intact" : "other bytes");
}

/* Four megabytes, one send and one receive under way at any time. */
static void row_bulk(struct ring *r, const char *way, int from, int to) {
  const unsigned long total = 4 << 20;
  unsigned long sent = 0, got = 0;
  const char *bad = 0;
  for (int sending = 0, reading = 0; got < total && !bad;) {
    if (!sending && sent < total) {
      unsigned len = total - sent < ROOM ? total - sent : ROOM;
      fill(out, sent, len);
      next(r, IORING_OP_SEND, from, out, len, 1)->msg_flags = MSG_NOSIGNAL;
      submit(r);
      sending = 1;
    }
    if (!reading) {
      next(r, IORING_OP_RECV, to, in, ROOM, 2);
      submit(r);
      reading = 1;
    }
    struct done cqe;
    if (!take(r, &cqe, LIMIT_MS)) lost("nothing completes");
    if (cqe.res <= 0) bad = result(cqe.res);
    else if (cqe.user_data == 1) sent += cqe.res, sending = 0;
    else {
      if (!intact(in, got, cqe.res)) bad = "other bytes";
      got += cqe.res;
      reading = 0;
    }
  }
  printf("%s: %s\n", way, bad ? bad : "all, intact");
}

static void row_waitall(struct ring *r, const char *way, int from, int to) {
  struct done cqe;
  next(r, IORING_OP_RECV, to, in, 200, 1)->msg_flags = MSG_WAITALL;
  submit(r);
  send_plain(from, 100);
  printf("%s with half: %s\n", way, take(r, &cqe, NEVER_MS) ? result(cqe.res) : "waits");
  send_plain(from, 100);
  printf("%s with all: %s\n", way, take(r, &cqe, NEVER_MS) ? result(cqe.res) : "waits");
}

/* One receive for all that comes, into buffers of a ring of buffers. */
static void row_multishot(struct ring *r) {
  enum { BUFFERS = 8, SIZE = 4096 };
  static struct io_uring_buf_ring *buffers;
  static unsigned char memory[BUFFERS][SIZE];
  buffers = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct io_uring_buf_reg reg = {.ring_addr = (unsigned long)buffers, .ring_entries = BUFFERS, .bgid = 7};
  if (syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_PBUF_RING, &reg, 1) < 0) {
    printf("buffers: %s\n", result(-errno));
    return;
  }
  for (int i = 0; i < BUFFERS; i++)
    buffers->bufs[i].addr = (unsigned long)memory[i], buffers->bufs[i].len = SIZE, buffers->bufs[i].bid = i;
  __atomic_store_n(&buffers->tail, BUFFERS, __ATOMIC_RELEASE);
  struct pair pair = connected(0);
  for (int way = 0; way < 2; way++) {
    int from = pair.ends[way], to = pair.ends[1 - way];
    struct io_uring_sqe *sqe = next(r, IORING_OP_RECV, to, 0, 0, 1);
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = 7;
    submit(r);
    struct done cqe;
    for (int turn = 0; turn < 3; turn++) {
      send_plain(from, 100);
      if (!take(r, &cqe, LIMIT_MS)) lost("nothing completes");
      int bid = cqe.flags >> IORING_CQE_BUFFER_SHIFT;
      int right = cqe.res > 0 && cqe.flags & IORING_CQE_F_BUFFER && intact(memory[bid], 0, cqe.res);
      printf("%s %d: %s, %s, %s\n", WAYS[way], turn, result(cqe.res), right ? "intact" : "not in its buffer",
             cqe.flags & IORING_CQE_F_MORE ? "more" : "no more");
    }
    shutdown(from, SHUT_WR);
    if (!take(r, &cqe, LIMIT_MS)) lost("nothing completes");
    printf("%s end: %s, %s\n", WAYS[way], result(cqe.res), cqe.flags & IORING_CQE_F_MORE ? "more" : "no more");
  }
}

/* The kernel picks one of the buffers that were handed to it, before and after there is something to read. */
static void row_buffers(struct ring *r) {
  static unsigned char memory[4][1000];
  struct io_uring_sqe *sqe = next(r, IORING_OP_PROVIDE_BUFFERS, 4, memory, 1000, 1);
  sqe->buf_group = 3;
  int given = one(r).res;
  printf("given: %s\n", given < 0 ? result(given) : "done");
  struct pair pair = connected(0);
  for (int turn = 0; turn < 4; turn++) {
    int from = pair.ends[turn % 2], to = pair.ends[1 - turn % 2];
    if (turn < 2) send_plain(from, 1000), arrived(to, 1000);
    sqe = next(r, IORING_OP_RECV, to, 0, 1000, 1);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = 3;
    submit(r);
    if (turn >= 2) send_plain(from, 1000);
    struct done cqe = one(r);
    int bid = cqe.flags >> IORING_CQE_BUFFER_SHIFT;
    int right = cqe.res > 0 && cqe.flags & IORING_CQE_F_BUFFER && bid < 4 && intact(memory[bid], 0, cqe.res);
    printf("%s %s: %s, %s\n", WAYS[turn % 2], turn < 2 ? "after" : "before", result(cqe.res),
           right ? "intact" : "not in its buffer");
  }
  sqe = next(r, IORING_OP_RECV, pair.ends[0], 0, 1000, 1);
  sqe->flags = IOSQE_BUFFER_SELECT;
  sqe->buf_group = 3;
  send_plain(pair.ends[1], 10);
  printf("none left: %s\n", result(one(r).res));
}

static void row_poll(struct ring *r, const char *way, int from, int to) {
  struct done cqe;
  next(r, IORING_OP_POLL_ADD, to, 0, 0, 1)->poll32_events = POLLIN;
  submit(r);
  printf("%s nothing there: %s\n", way, take(r, &cqe, NEVER_MS) ? "told" : "waits");
  send_plain(from, 100);
  printf("%s told: %s\n", way, take(r, &cqe, LIMIT_MS) && cqe.res > 0 && cqe.res & POLLIN ? "IN" : "something else");
  printf("%s read: %s\n", way, read_all(r, to, 100));
  next(r, IORING_OP_POLL_ADD, to, 0, IORING_POLL_ADD_MULTI, 2)->poll32_events = POLLIN;
  submit(r);
  int told = 0;
  for (int turn = 0; turn < 5; turn++) {
    send_plain(from, 10);
    if (!take(r, &cqe, LIMIT_MS)) break;
    told += cqe.user_data == 2 && cqe.res > 0 && cqe.res & POLLIN;
    /* By the system call: the ring is to say nothing else; how often it says one thing is its own affair. */
    for (int got = 0; got < 10;) {
      ssize_t n = recv(to, in, 10 - got, 0);
      if (n <= 0) fail("recv");
      got += n;
    }
    while (take(r, &cqe, 0)) {}
  }
  printf("%s told again and again: %d\n", way, told);
  next(r, IORING_OP_ASYNC_CANCEL, -1, (void *)2, 0, 3);
  submit(r);
  int ended = 0, cancelled = 1;
  for (int turn = 0; turn < 2 && take(r, &cqe, LIMIT_MS); turn++) *(cqe.user_data == 2 ? &ended : &cancelled) = cqe.res;
  printf("%s cancelled: %s, %s\n", way, result(ended), cancelled ? result(cancelled) : "done");
}

/* Whether a completion says that more is there. */
static void row_nonempty(struct ring *r, const char *way, int from, int to) {
  send_plain(from, 1000);
  arrived(to, 1000);
  next(r, IORING_OP_RECV, to, in, 400, 1);
  struct done cqe = one(r);
  printf("%s part: %s, %s\n", way, result(cqe.res), cqe.flags & IORING_CQE_F_SOCK_NONEMPTY ? "more is there" : "-");
  next(r, IORING_OP_RECV, to, in, 1000, 1);
  cqe = one(r);
  printf("%s rest: %s, %s\n", way, result(cqe.res), cqe.flags & IORING_CQE_F_SOCK_NONEMPTY ? "more is there" : "-");
}

static void row_zerocopy(struct ring *r, const char *way, int from, int to) {
  fill(out, 0, 20000);
  next(r, IORING_OP_SEND_ZC, from, out, 20000, 1)->msg_flags = MSG_NOSIGNAL | MSG_WAITALL;
  struct done cqe = one(r);
  printf("%s sent: %s\n", way, result(cqe.res));
  int more = cqe.flags & IORING_CQE_F_MORE;
  /* By the system call: the ring is to say nothing else. */
  for (int got = 0, n; got < cqe.res; got += n) {
    n = recv(to, in, cqe.res - got, 0);
    if (n <= 0) fail("recv");
    if (!intact(in, got, n)) printf("%s read: other bytes\n", way);
  }
  if (!more) printf("%s memory: nothing to wait for\n", way);
  else printf("%s memory: %s\n", way, take(r, &cqe, LIMIT_MS) && cqe.flags & IORING_CQE_F_NOTIF ? "told" : "not told");
}

static void row_cancel(struct ring *r, const char *way, int from, int to) {
  next(r, IORING_OP_RECV, to, in, 1000, 1);
  submit(r);
  next(r, IORING_OP_ASYNC_CANCEL, -1, (void *)1, 0, 2);
  submit(r);
  struct done cqe;
  int ended = 0, cancelled = 1;
  for (int turn = 0; turn < 2 && take(r, &cqe, LIMIT_MS); turn++) *(cqe.user_data == 1 ? &ended : &cancelled) = cqe.res;
  printf("%s ended: %s\n", way, result(ended));
  printf("%s cancelled: %s\n", way, cancelled ? result(cancelled) : "done");
  send_plain(from, 1000);
  printf("%s read: %s\n", way, read_all(r, to, 1000));
}

static void row_timeout(struct ring *r, const char *way, int from, int to) {
  struct __kernel_timespec soon = {.tv_nsec = 50000000};
  next(r, IORING_OP_RECV, to, in, 1000, 1)->flags = IOSQE_IO_LINK;
  next(r, IORING_OP_LINK_TIMEOUT, -1, &soon, 1, 2);
  submit(r);
  struct done cqe;
  int ended = 0, over = 0;
  for (int turn = 0; turn < 2 && take(r, &cqe, LIMIT_MS); turn++) *(cqe.user_data == 1 ? &ended : &over) = cqe.res;
  printf("%s ended: %s, %s\n", way, result(ended), result(over));
  send_plain(from, 1000);
  printf("%s read: %s\n", way, read_all(r, to, 1000));
}

/* A receive is under way when the other end closes, resets, or has closed long ago with bytes in between. */
static void row_end(struct ring *r) {
  struct linger reset = {1, 0};
  for (int turn = 0; turn < 6; turn++) {
    const char *how[] = {"close", "reset", "bytes and close"};
    struct pair pair = connected(0);
    int from = pair.ends[turn % 2], to = pair.ends[1 - turn % 2];
    send_plain(from, 10);
    read_all(r, to, 10);
    if (turn / 2 == 2) send_plain(from, 1000), close(from), arrived(to, 1000);
    else {
      next(r, IORING_OP_RECV, to, in, 1000, 1);
      submit(r);
      if (turn / 2) setsockopt(from, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
      close(from);
    }
    if (turn / 2 == 2) printf("%s read: %s\n", WAYS[turn % 2], read_all(r, to, 1000)), next(r, IORING_OP_RECV, to, in, 1000, 1);
    printf("%s %s: %s\n", WAYS[turn % 2], how[turn / 2], result(one(r).res));
    close(to);
  }
}

static void row_splice(struct ring *r, const char *way, int from, int to) {
  int pipes[2];
  if (pipe2(pipes, O_CLOEXEC)) fail("pipe");
  send_plain(from, 5000);
  arrived(to, 5000);
  struct io_uring_sqe *sqe = next(r, IORING_OP_SPLICE, pipes[1], 0, 5000, 1);
  sqe->splice_fd_in = to;
  sqe->splice_off_in = sqe->off = -1;
  submit(r);
  struct done cqe;
  if (!take(r, &cqe, NEVER_MS)) {
    printf("%s moved: nothing\n%s read: nothing\n", way, way);
    next(r, IORING_OP_ASYNC_CANCEL, -1, (void *)1, 0, 2);
    submit(r);
    for (int turn = 0; turn < 2 && take(r, &cqe, LIMIT_MS); turn++) {}
    return;
  }
  printf("%s moved: %s\n", way, result(cqe.res));
  if (cqe.res > 0) printf("%s read: %s\n", way, read(pipes[0], in, ROOM) == cqe.res && intact(in, 0, cqe.res) ? "intact" : "other bytes");
}

static void row_connect(struct ring *r) {
  for (int six = 0; six < 2; six++) {
    const char *family[] = {"four", "six"};
    int listener = listening(&roads[six]);
    int client = socket(roads[six].dial.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    next(r, IORING_OP_CONNECT, client, &roads[six].dial, 0, 1)->off = length(&roads[six].dial);
    next(r, IORING_OP_ACCEPT, listener, 0, 0, 2)->accept_flags = SOCK_CLOEXEC;
    submit(r);
    struct done cqe;
    int done = -1, server = -1;
    for (int turn = 0; turn < 2 && take(r, &cqe, LIMIT_MS); turn++) *(cqe.user_data == 1 ? &done : &server) = cqe.res;
    printf("%s connect: %s\n", family[six], done ? result(done) : "done");
    if (server < 0) lost("nobody was accepted");
    row_send(r, family[six], client, server);
    row_send(r, family[six], server, client);
    struct sockaddr_storage peer;
    socklen_t len = sizeof peer;
    getpeername(client, (void *)&peer, &len);
    int same = len == length(&roads[six].dial) && !memcmp(&peer, &roads[six].dial, 8);
    printf("%s peer: %s\n", family[six], same ? "what was dialled" : "another");
    close(client), close(server), close(listener);
  }
}

static void perform(struct ring *r, const char *row) {
  static const struct {
    const char *name;
    void (*way)(struct ring *, const char *, int, int);
    void (*all)(struct ring *);
    unsigned setup;
  } ROWS[] = {
      {"ring_send", row_send, 0, 0},         {"ring_vectors", row_vectors, 0, 0},
      {"ring_bulk", row_bulk, 0, 0},         {"ring_waitall", row_waitall, 0, 0},
      {"ring_multishot", 0, row_multishot, 0}, {"ring_buffers", 0, row_buffers, 0},
      {"ring_poll", row_poll, 0, 0},         {"ring_nonempty", row_nonempty, 0, 0},
      {"ring_zerocopy", row_zerocopy, 0, 0}, {"ring_cancel", row_cancel, 0, 0},
      {"ring_timeout", row_timeout, 0, 0},   {"ring_end", 0, row_end, 0},
      {"ring_splice", row_splice, 0, 0},     {"ring_connect", 0, row_connect, 0},
      {"ring_thread", row_send, 0, IORING_SETUP_SQPOLL},
  };
  for (unsigned i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
    if (!row) printf("%s\n", ROWS[i].name);
    else if (!strcmp(row, ROWS[i].name)) {
      ring_open(r, ROWS[i].setup);
      if (ROWS[i].way) each_way(r, ROWS[i].way);
      else ROWS[i].all(r);
      return;
    }
  }
  if (row) lost("unknown row: see `rings list`");
}

int main(int argc, char **argv) {
  struct ring r;
  if (argc == 2 && !strcmp(argv[1], "list")) {
    ring_open(&r, 0);
    perform(&r, 0);
    return 0;
  }
  int hold = argc == 7 && !strcmp(argv[1], "hold");
  if (argc != 6 && !hold) lost("expected: list, or ROW LISTEN DIAL LISTEN6 DIAL6");
  char **at = argv + argc - 4;
  for (int i = 0; i < 2; i++) address(&roads[i].listen, at[2 * i]), address(&roads[i].dial, at[2 * i + 1]);
  if (!hold) {
    perform(&r, argv[1]);
    return 0;
  }
  ring_open(&r, 0);
  struct pair pair = connected(strcmp(argv[2], "blocking") ? SOCK_NONBLOCK : 0);
  for (int way = 0; way < 2; way++) {
    send_plain(pair.ends[way], 1000);
    arrived(pair.ends[1 - way], 1000);
    if (recv(pair.ends[1 - way], in, 1000, 0) != 1000) fail("recv");
  }
  struct sockaddr_in own;
  socklen_t len = sizeof own;
  getsockname(pair.ends[0], (void *)&own, &len);
  printf("held: %s:%d\n", inet_ntoa(own.sin_addr), ntohs(own.sin_port));
  fflush(stdout);
  for (;;) pause();
}
