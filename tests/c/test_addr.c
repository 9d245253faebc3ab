/* Addresses: text in, bytes out, and back. */
#include "tl_test.h"

#include <arpa/inet.h>
#include <net/if.h>

/* A copy of text that ends right before a forbidden page. */
static char *guarded_text(const char *text) {
  size_t n = strlen(text) + 1;
  return memcpy(t_guarded(n), text, n);
}

static void expect_text(const tl_addr *addr, const char *wanted) {
  size_t n = strlen(wanted);
  char *out = t_guarded(n + 1);
  ASSERT_EQ(tl_addr_text(addr, out, n + 1), n);
  ASSERT_STR(out, wanted);
  for (size_t room = 0; room <= n; room++) /* one too small is an error, whatever is written */
    ASSERT_EQ(tl_addr_text(addr, (char *)t_guarded(room) + 0, room), -ENOSPC);
}

static void expect_ip(const char *host, int port, int family, const char *text) {
  tl_addr addr;
  memset(&addr, 0xff, sizeof addr);
  ASSERT_EQ(tl_addr_ip(&addr, guarded_text(host), port), 0);
  ASSERT_EQ(((struct sockaddr *)(void *)addr.data)->sa_family, family);
  ASSERT_EQ(tl_addr_port(&addr), port);
  expect_text(&addr, text);
}

TEST_ON(ip_addresses, ON_ONCE) {
  expect_ip("127.0.0.1", 80, AF_INET, "127.0.0.1:80");
  expect_ip("0.0.0.0", 0, AF_INET, "0.0.0.0:0");
  expect_ip("255.255.255.255", 65535, AF_INET, "255.255.255.255:65535");
  expect_ip("::1", 80, AF_INET6, "[::1]:80");
  expect_ip("::", 0, AF_INET6, "[::]:0");
  expect_ip("2001:DB8::1", 443, AF_INET6, "[2001:db8::1]:443");
  expect_ip("::ffff:1.2.3.4", 1, AF_INET6, "[::ffff:1.2.3.4]:1");
  expect_ip("1111:2222:3333:4444:5555:6666:7777:8888", 1, AF_INET6,
            "[1111:2222:3333:4444:5555:6666:7777:8888]:1");
}

TEST_ON(zones, ON_ONCE) {
  tl_addr addr;
  const struct sockaddr_in6 *in6 = (const void *)addr.data;
  ASSERT_EQ(tl_addr_ip(&addr, guarded_text("fe80::1%lo"), 1), 0);
  ASSERT_EQ(in6->sin6_scope_id, if_nametoindex("lo"));
  ASSERT_EQ(tl_addr_ip(&addr, "fe80::1", 1), 0);
  ASSERT_EQ(in6->sin6_scope_id, 0);
  ASSERT_EQ(tl_addr_ip(&addr, "fe80::1%no-such-link", 1), -EINVAL);
  ASSERT_EQ(tl_addr_ip(&addr, "fe80::1%", 1), -EINVAL);
}

TEST_ON(what_is_no_ip_address, ON_ONCE) {
  tl_addr addr;
  const char *hosts[] = {"",         "localhost", "1.2.3",      "1.2.3.4.5", "256.1.1.1",
                         "1.2.3.4 ", ":::1",      "[::1]",      "::1]",      "%lo",
                         "12345::1", "0x7f.1",    "1.2.3.4%lo", "::g",       "fe80::1%%"};
  for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++)
    if (tl_addr_ip(&addr, guarded_text(hosts[i]), 80) != -EINVAL)
      t_fail(__FILE__, __LINE__, "accepted: \"%s\"", hosts[i]);
  char *lengthy = t_guarded(1001);
  memset(lengthy, '1', 1000);
  lengthy[1000] = 0;
  ASSERT_EQ(tl_addr_ip(&addr, lengthy, 80), -EINVAL);
  lengthy[990] = '%';
  ASSERT_EQ(tl_addr_ip(&addr, lengthy, 80), -EINVAL);
}

TEST_ON(ports_outside_the_range, ON_ONCE) {
  tl_addr addr;
  const int ports[] = {-1, 65536, INT32_MIN, INT32_MAX};
  for (int i = 0; i < 4; i++) {
    ASSERT_EQ(tl_addr_ip(&addr, "127.0.0.1", ports[i]), -EINVAL);
    ASSERT_EQ(tl_addr_ip(&addr, "::1", ports[i]), -EINVAL);
  }
}

TEST_ON(unix_paths, ON_ONCE) {
  tl_addr addr;
  char *path = t_guarded(107); /* not terminated: the length counts */
  memset(path, 'p', 107);
  ASSERT_EQ(tl_addr_unix(&addr, path, 107), 0);
  ASSERT_EQ(addr.nbytes, sizeof(struct sockaddr_un));
  char text[200];
  ASSERT_EQ(tl_addr_text(&addr, text, sizeof text), 107);
  ASSERT_MEM(text, path, 107);
  ASSERT_EQ(tl_addr_port(&addr), -EAFNOSUPPORT);
  ASSERT_EQ(tl_addr_unix(&addr, "/tmp/s", 6), 0);
  expect_text(&addr, "/tmp/s");
  ASSERT_EQ(tl_addr_unix(&addr, "", 0), -EINVAL);
  char lengthy[300] = {'p'};
  memset(lengthy, 'p', sizeof lengthy);
  ASSERT_EQ(tl_addr_unix(&addr, lengthy, 108), -ENAMETOOLONG);
  ASSERT_EQ(tl_addr_unix(&addr, lengthy, 300), -ENAMETOOLONG);
}

TEST_ON(abstract_names, ON_ONCE) {
  tl_addr addr;
  char *name = t_guarded(108);
  memset(name, 'n', 108);
  name[0] = 0;
  ASSERT_EQ(tl_addr_unix(&addr, name, 108), 0);
  ASSERT_EQ(addr.nbytes, sizeof(struct sockaddr_un));
  ASSERT_EQ(tl_addr_unix(&addr, "\0abc", 4), 0);
  ASSERT_EQ(addr.nbytes, offsetof(struct sockaddr_un, sun_path) + 4);
  expect_text(&addr, "@abc");
  char lengthy[109] = {0};
  ASSERT_EQ(tl_addr_unix(&addr, lengthy, 109), -ENAMETOOLONG);
}

TEST_ON(raw_addresses, ON_ONCE) {
  tl_addr addr, same = t_ip4(4321);
  struct sockaddr_in *in = t_guarded(sizeof *in);
  *in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(4321)};
  in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  memset(&addr, 0xff, sizeof addr);
  ASSERT_EQ(tl_addr_raw(&addr, in, sizeof *in), 0);
  ASSERT_MEM(&addr, &same, sizeof addr);
  char big[200] = {0};
  ASSERT_EQ(tl_addr_raw(&addr, big, 128), 0);
  ASSERT_EQ(tl_addr_raw(&addr, big, 129), -EINVAL);
  ASSERT_EQ(tl_addr_raw(&addr, NULL, 0), 0);
  expect_text(&addr, "");
  ASSERT_EQ(tl_addr_port(&addr), -EAFNOSUPPORT);
}

/* Equal addresses are equal bytes, wherever they come from. */
TEST_ON(unused_bytes_are_zero, ON_ONCE) {
  tl_addr a, b;
  memset(&a, 0x00, sizeof a);
  memset(&b, 0xff, sizeof b);
  tl_addr_ip(&a, "::1", 80);
  tl_addr_ip(&b, "::1", 80);
  ASSERT_MEM(&a, &b, sizeof a);
  memset(&a, 0xff, sizeof a);
  tl_addr_unix(&a, "x", 1);
  tl_addr_unix(&b, "x", 1);
  ASSERT_MEM(&a, &b, sizeof a);
}

TEST_ON(strange_families_have_a_text, ON_ONCE) {
  tl_addr addr;
  struct sockaddr sa = {.sa_family = 77};
  char text[64];
  ASSERT_EQ(tl_addr_raw(&addr, &sa, sizeof sa), 0);
  ASSERT_GT(tl_addr_text(&addr, text, sizeof text), 0);
  ASSERT_EQ(tl_addr_text(&addr, text, 1), -ENOSPC);
  for (size_t n = 1; n < sizeof(struct sockaddr_in6); n++) { /* cut short */
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
    ASSERT_EQ(tl_addr_raw(&addr, &in6, n), 0);
    tl_addr_text(&addr, text, sizeof text);
    tl_addr_port(&addr);
  }
}

TEST(a_bound_socket_knows_its_name) {
  tl_loop *loop = t_loop();
  tl_addr addr = t_ip4(0), name, again;
  tl_handle udp = ASSERT_OK(tl_udp_bind(loop, &addr, 0));
  ASSERT_GT(t_bound(loop, udp, &name), 0);
  again = t_ip4(tl_addr_port(&name));
  ASSERT_MEM(&name, &again, sizeof name);
  ASSERT_EQ(tl_peername(loop, udp, &addr), -ENOTCONN);
  t_close(loop, udp);
  t_end(loop);
}
