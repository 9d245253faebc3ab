// The least an echo server can do: epoll, recv and send, one buffer for all. The limit of any loop.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 1024, EVENTS_MAX = 256, BUFFER = 100 * 1024, FDS_MAX = 65536 };

// What the peer has not taken yet.
typedef struct rest {
  char *data;
  size_t size;
} rest;

static rest rests[FDS_MAX]; // by descriptor
static char buffer[BUFFER];
static int epoll_fd;

static _Noreturn void die(const char *what) {
  perror(what);
  exit(1);
}

static void forget(int fd) {
  free(rests[fd].data);
  rests[fd] = (rest){0};
  close(fd);
}

static void watch(int fd, int op, uint32_t events) {
  struct epoll_event event = {.events = events, .data.fd = fd};
  if (epoll_ctl(epoll_fd, op, fd, &event) < 0) die("epoll_ctl");
}

// A peer that does not read is not read from.
static void keep(int fd, const char *data, size_t size) {
  rests[fd] = (rest){malloc(size), size};
  if (!rests[fd].data) die("malloc");
  memcpy(rests[fd].data, data, size);
  watch(fd, EPOLL_CTL_MOD, EPOLLOUT);
}

static void echo(int fd) {
  ssize_t n = recv(fd, buffer, sizeof buffer, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    forget(fd);
    return;
  }
  ssize_t sent = send(fd, buffer, (size_t)n, MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN) {
    forget(fd);
    return;
  }
  if (sent < n) keep(fd, buffer + (sent > 0 ? sent : 0), (size_t)(n - (sent > 0 ? sent : 0)));
}

static void send_rest(int fd) {
  rest *r = &rests[fd];
  ssize_t sent = send(fd, r->data, r->size, MSG_NOSIGNAL);
  if (sent < 0 && errno == EAGAIN) return;
  if (sent < 0) {
    forget(fd);
    return;
  }
  r->size -= (size_t)sent;
  memmove(r->data, r->data + sent, r->size);
  if (r->size) return;
  free(r->data);
  *r = (rest){0};
  watch(fd, EPOLL_CTL_MOD, EPOLLIN);
}

static void accept_all(int server) {
  for (int fd; (fd = accept4(server, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
    if (fd >= FDS_MAX) {
      close(fd);
      continue;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    watch(fd, EPOLL_CTL_ADD, EPOLLIN);
  }
}

static int listen_on_loopback(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, BACKLOG) < 0 ||
      getsockname(fd, (struct sockaddr *)&address, &length) < 0)
    die("listen");
  printf("ready 127.0.0.1:%d\n", ntohs(address.sin_port)), fflush(stdout);
  return fd;
}

int main(void) {
  struct epoll_event events[EVENTS_MAX];
  alarm(120); // never outlive a parent that was killed
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0) die("epoll_create1");
  int server = listen_on_loopback();
  watch(server, EPOLL_CTL_ADD, EPOLLIN);
  for (;;) {
    int n = epoll_wait(epoll_fd, events, EVENTS_MAX, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == server)
        accept_all(server);
      else if (rests[fd].data)
        send_rest(fd);
      else
        echo(fd);
    }
  }
}
