/* How the threads of a forward pass share its work, and go on without one that has lost its core.

   A forward pass is a sequence of jobs, each divided into tasks. Every thread of the team goes through all
   jobs in order: it works on tasks until none is left, and goes on when all tasks of the job are done. It
   begins with its own share of the tasks, from the front; then it takes tasks from the back of the others'
   shares (work stealing, Blumofe and Leiserson 1999).

   If another program computes on the core of a thread, that thread stands still for milliseconds in the
   middle of a task. So once a task has taken much longer than the others, another thread does it again
   (backup tasks as in MapReduce, Dean and Ghemawat 2004), and the team goes on. Both compute the same bits,
   each in memory of its own, and only the first to call `may_write` writes the result. The late thread then
   finds that jobs were done without it, and catches up. Until it has, it may read numbers that others
   overwrite, but nothing that it computes from them is written: what a job reads is overwritten only after
   the job is done.

   Short jobs, such as packing tokens, write as they go: each of their tasks is done once. */

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

int omp_get_thread_num(void); /* omp.h is missing on macOS */

enum task_state { TAKEN_ONCE, TAKEN_AGAIN, WRITING, DONE }; /* the first also before a task is taken */

/* The tasks that one thread begins with, in cache lines of their own. All zeros at the start. */
typedef struct {
  _Atomic uint64_t taken;   /* tasks taken from the front, plus 2^32 for each one from the back */
  _Atomic uint8_t states[]; /* task_state of each task */
} Share;

/* One thread's view of its team. */
typedef struct {
  int thread, threads;
  char *shares; /* of the next job, shared by the team */
} Team;

/* One thread's view of a job. */
typedef struct {
  int thread, threads;
  char *shares;
  int count, repeatable;  /* tasks, and whether they may be done again */
  int victim;             /* tasks are taken from the share of the thread that is so many after this one */
  int taken;              /* tasks that this thread has taken */
  _Atomic uint8_t *state; /* of this thread's task */
  double start;           /* in seconds */
} Job;

#define FEWEST_SECONDS 2e-5 /* no task is done again earlier than that */

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

static int64_t share_bytes(int count, int threads) {
  return ((int64_t)sizeof(Share) + (count + threads - 1) / threads + 63) / 64 * 64;
}

/* Bytes that a job's shares take. */
static int64_t job_bytes(int count, int threads) { return threads * share_bytes(count, threads); }

static Share *share_of(const Job *job, int thread) {
  return (Share *)(job->shares + thread * share_bytes(job->count, job->threads));
}

/* The first task in a thread's share. */
static int first_task(const Job *job, int thread) { return (int64_t)job->count * thread / job->threads; }

/* Every thread of the team begins the same jobs in the same order. */
static Job begin_job(Team *team, int count, int repeatable) {
  Job job = {team->thread, team->threads, team->shares, count, repeatable, .start = seconds_now()};
  team->shares += job_bytes(count, team->threads);
  return job;
}

/* Take one of `count` tasks, from the front or the back: its number in the share, or -1 if none is left. */
static int take_task(Share *share, int count, int from_back) {
  const uint64_t one = from_back ? 1ull << 32 : 1;
  uint64_t taken = atomic_load_explicit(&share->taken, memory_order_relaxed);
  uint32_t front, back;
  do {
    front = taken, back = taken >> 32;
    if (front + back >= (uint32_t)count) return -1;
  } while (!atomic_compare_exchange_weak(&share->taken, &taken, taken + one));
  return from_back ? count - 1 - back : front;
}

static void pause_briefly(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Wait until the task with this state is done. Return 0 then, or 1 if this thread is to do it again. */
static int await_task(const Job *job, _Atomic uint8_t *state) {
  if (atomic_load(state) == DONE) return 0;
  double now = seconds_now(), patience = 2 * (now - job->start) / (job->taken ? job->taken : 1);
  double deadline = now + (patience > FEWEST_SECONDS ? patience : FEWEST_SECONDS);
  while (atomic_load(state) != DONE) {
    for (int i = 0; i < 16; i++) pause_briefly();
    if (seconds_now() < deadline) continue;
    uint8_t expected = TAKEN_ONCE;
    if (job->repeatable && atomic_compare_exchange_strong(state, &expected, TAKEN_AGAIN)) return 1;
    sched_yield(); /* the thread that this one waits for may need its core */
  }
  return 0;
}

/* Return the next task for this thread; -1 when all tasks of the job are done. */
static int next_task(Job *job) {
  for (; job->victim < job->threads; job->victim++) {
    int owner = (job->thread + job->victim) % job->threads, first = first_task(job, owner);
    Share *share = share_of(job, owner);
    int task = take_task(share, first_task(job, owner + 1) - first, job->victim > 0);
    if (task < 0) continue;
    job->taken++;
    job->state = share->states + task;
    return first + task;
  }
  for (int owner = 0; owner < job->threads; owner++) {
    int first = first_task(job, owner), count = first_task(job, owner + 1) - first;
    for (int task = 0; task < count; task++) {
      job->state = share_of(job, owner)->states + task;
      if (await_task(job, job->state)) return first + task;
    }
  }
  return -1;
}

/* Whether this thread may write the result of its repeatable task: of those that did it, only one may. */
static int may_write(const Job *job) {
  uint8_t seen = atomic_load(job->state);
  while (seen < WRITING)
    if (atomic_compare_exchange_weak(job->state, &seen, WRITING)) return 1;
  return 0;
}

/* Tell the team that this thread's task is done. */
static void end_task(const Job *job) { atomic_store_explicit(job->state, DONE, memory_order_release); }
