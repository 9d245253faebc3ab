/* Children: their end is an event, and they are reaped. */
#include "tl_test.h"

/* A child that waits until the returned descriptor is closed, then exits; NULL: at once. */
static pid_t child(int code, int *leash) {
  int fds[2];
  t_pipe(fds);
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0) {
    char byte;
    close(fds[1]);
    ssize_t n = leash ? read(fds[0], &byte, 1) : 0;
    _exit(n == 0 ? code : 99);
  }
  close(fds[0]);
  if (leash)
    *leash = fds[1];
  else
    close(fds[1]);
  return pid;
}

static void expect_reaped(pid_t pid) {
  ASSERT_EQ(waitpid(pid, NULL, WNOHANG), -1);
  ASSERT_EQ(errno, ECHILD);
}

TEST(exit_code) {
  tl_loop *loop = t_loop();
  int leash;
  pid_t pid = child(42, &leash);
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  t_quiet(loop);
  close(leash);
  int status = (int)t_expect(loop, handle, TL_EV_CHILD).result;
  ASSERT_TRUE(WIFEXITED(status));
  ASSERT_EQ(WEXITSTATUS(status), 42);
  expect_reaped(pid);
  t_quiet(loop);
  t_close(loop, handle);
  t_end(loop);
}

TEST(killed_by_a_signal) {
  tl_loop *loop = t_loop();
  int leash;
  pid_t pid = child(0, &leash);
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  kill(pid, SIGKILL);
  int status = (int)t_expect(loop, handle, TL_EV_CHILD).result;
  ASSERT_TRUE(WIFSIGNALED(status));
  ASSERT_EQ(WTERMSIG(status), SIGKILL);
  expect_reaped(pid);
  close(leash);
  t_close(loop, handle);
  t_end(loop);
}

TEST(already_dead_but_not_reaped) {
  tl_loop *loop = t_loop();
  siginfo_t info;
  pid_t pid = child(7, NULL);
  ASSERT_SYS(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT));
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  ASSERT_EQ(WEXITSTATUS((int)t_expect(loop, handle, TL_EV_CHILD).result), 7);
  expect_reaped(pid);
  t_close(loop, handle);
  t_end(loop);
}

TEST(many_children) {
  enum { N = 40 };
  tl_loop *loop = t_loop();
  pid_t pids[N];
  tl_handle handles[N];
  bool seen[N] = {false};
  for (int i = 0; i < N; i++) {
    pids[i] = child(i, NULL);
    handles[i] = ASSERT_OK(tl_child_watch(loop, pids[i]));
  }
  for (int ended = 0; ended < N;) {
    tl_event event = t_next(loop);
    if (event.kind == TL_EV_CLOSED) continue;
    ASSERT_EQ(event.kind, TL_EV_CHILD);
    int i = 0;
    while (handles[i] != event.handle) i++;
    ASSERT_TRUE(!seen[i]);
    seen[i] = true;
    ended++;
    ASSERT_EQ(WEXITSTATUS((int)event.result), i);
    expect_reaped(pids[i]);
    ASSERT_OK(tl_close(loop, handles[i]));
  }
  t_end(loop);
}

TEST(no_child_of_ours) {
  tl_loop *loop = t_loop();
  ASSERT_EQ(tl_child_watch(loop, getppid()), -ECHILD);
  ASSERT_EQ(tl_child_watch(loop, getpid()), -ECHILD);
  ASSERT_LT(tl_child_watch(loop, 0), 0);
  ASSERT_LT(tl_child_watch(loop, -1), 0);
  ASSERT_LT(tl_child_watch(loop, INT32_MAX), 0);
  pid_t pid = child(0, NULL);
  ASSERT_EQ(waitpid(pid, NULL, 0), pid);
  ASSERT_LT(tl_child_watch(loop, pid), 0);
  ASSERT_EQ(t_stats(loop).live, 0);
  t_end(loop);
}

TEST(closing_the_handle_leaves_the_child_alone) {
  tl_loop *loop = t_loop();
  int leash, status;
  pid_t pid = child(5, &leash);
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  t_close(loop, handle);
  close(leash);
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  ASSERT_EQ(WEXITSTATUS(status), 5);
  t_end(loop);
}

/* The kernel reaps children itself when SIGCHLD is ignored: the status is lost, the end is not. */
TEST(somebody_else_reaps) {
  tl_loop *loop = t_loop();
  int leash;
  signal(SIGCHLD, SIG_IGN);
  pid_t pid = child(5, &leash);
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  close(leash);
  ASSERT_EQ(t_expect(loop, handle, TL_EV_CHILD).result, -ECHILD);
  t_quiet(loop);
  t_close(loop, handle);
  t_end(loop);
}

TEST(stopped_children_have_not_ended) {
  tl_loop *loop = t_loop();
  int leash;
  pid_t pid = child(1, &leash);
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  kill(pid, SIGSTOP);
  t_quiet(loop);
  kill(pid, SIGCONT);
  t_quiet(loop);
  close(leash);
  ASSERT_EQ(WEXITSTATUS((int)t_expect(loop, handle, TL_EV_CHILD).result), 1);
  t_close(loop, handle);
  t_end(loop);
}

TEST(signals_reach_the_child) {
  tl_loop *loop = t_loop();
  int leash;
  pid_t pid = child(0, &leash);
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  ASSERT_EQ(tl_child_signal(loop, handle, 0), 0);
  ASSERT_EQ(tl_child_signal(loop, handle, 1000), -EINVAL);
  ASSERT_EQ(tl_child_signal(loop, handle, SIGTERM), 0);
  int status = (int)t_expect(loop, handle, TL_EV_CHILD).result;
  ASSERT_EQ(WTERMSIG(status), SIGTERM);
  ASSERT_EQ(tl_child_signal(loop, handle, 0), -ESRCH);
  t_close(loop, handle);
  ASSERT_EQ(tl_child_signal(loop, handle, 0), TL_EBADH);
  close(leash);
  t_end(loop);
}

TEST(a_child_that_somebody_else_reaped_gets_no_signal) {
  tl_loop *loop = t_loop();
  pid_t pid = child(0, NULL);
  ASSERT_EQ(tl_child_wait(pid), 0);
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  ASSERT_EQ(tl_child_signal(loop, handle, 0), 0); /* ended, but its number is still its own */
  ASSERT_EQ(waitpid(pid, NULL, 0), pid);
  ASSERT_EQ(tl_child_signal(loop, handle, 0), -ESRCH);
  t_close(loop, handle);
  t_end(loop);
}

TEST(waiting_in_a_thread_leaves_the_child_to_be_reaped) {
  int leash, status;
  pid_t pid = child(7, &leash);
  close(leash);
  ASSERT_EQ(tl_child_wait(pid), 0);
  ASSERT_EQ(tl_child_wait(pid), 0);
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  ASSERT_EQ(WEXITSTATUS(status), 7);
  ASSERT_EQ(tl_child_wait(pid), -ECHILD);
  ASSERT_EQ(tl_child_wait(getpid()), -ECHILD);
  ASSERT_EQ(tl_child_wait(0), -ECHILD);
  ASSERT_EQ(tl_child_wait(-1), -ECHILD);
}

TEST(the_status_can_be_asked_for_before_and_after_the_event) {
  tl_loop *loop = t_loop();
  int leash;
  pid_t pid = child(3, &leash);
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  ASSERT_EQ(tl_child_status(loop, handle), -EAGAIN);
  close(leash);
  ASSERT_EQ(tl_child_wait(pid), 0);
  ASSERT_EQ(WEXITSTATUS(tl_child_status(loop, handle)), 3);
  expect_reaped(pid);
  ASSERT_EQ(WEXITSTATUS((int)t_expect(loop, handle, TL_EV_CHILD).result), 3);
  ASSERT_EQ(WEXITSTATUS(tl_child_status(loop, handle)), 3);
  t_quiet(loop);
  t_close(loop, handle);
  ASSERT_EQ(tl_child_status(loop, handle), TL_EBADH);
  t_end(loop);
}

TEST(the_status_that_somebody_else_took_is_lost) {
  tl_loop *loop = t_loop();
  pid_t pid = child(3, NULL);
  ASSERT_EQ(tl_child_wait(pid), 0);
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  ASSERT_EQ(waitpid(pid, NULL, 0), pid);
  ASSERT_EQ(tl_child_status(loop, handle), -ECHILD);
  ASSERT_EQ(t_expect(loop, handle, TL_EV_CHILD).result, -ECHILD);
  t_close(loop, handle);
  t_end(loop);
}
