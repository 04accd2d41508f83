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

   Short jobs, such as packing tokens, write as they go: each of their tasks is done once, and waited for. */

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

int omp_get_thread_num(void); /* omp.h is missing on macOS */

enum task_state { ONCE, AGAIN, WRITING, DONE }; /* ONCE: not taken yet, or by one thread; AGAIN: by two */

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
  int64_t share_bytes;
  int each, rest;         /* tasks in a share; the first `rest` shares have one more */
  int repeatable;         /* whether tasks may be done again */
  int victim;             /* tasks are taken from the share of the thread that is so many after this one */
  int taken;              /* tasks that this thread has taken */
  _Atomic uint8_t *state; /* of this thread's task */
  double start, deadline; /* in seconds: later than the deadline, tasks are done again */
} Job;

/* A thread does a task again after twice the time that its own tasks took on average, in seconds, but not
   before so many; and after so many if it had none. */
#define LEAST_PATIENCE 2e-5
#define PATIENCE_WITHOUT_TASKS 1e-3

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

/* Begin a job of `count` tasks. Every thread of the team begins the same jobs in the same order. */
static Job begin_job(Team *team, int count, int repeatable) {
  int threads = team->threads;
  Job job = {.thread = team->thread, .threads = threads, .shares = team->shares, .repeatable = repeatable};
  job.share_bytes = share_bytes(count, threads);
  job.each = count / threads, job.rest = count % threads;
  job.start = seconds_now();
  team->shares += threads * job.share_bytes;
  return job;
}

/* The share that thread `owner` begins with, its first task, and how many it holds. */
static Share *share_of(const Job *job, int owner, int *first, int *count) {
  *first = owner * job->each + (owner < job->rest ? owner : job->rest);
  *count = job->each + (owner < job->rest);
  return (Share *)(job->shares + owner * job->share_bytes);
}

/* The thread that is `distance` after this one. */
static int thread_after(const Job *job, int distance) {
  int thread = job->thread + distance;
  return thread < job->threads ? thread : thread - job->threads;
}

/* Take one of a share's `count` tasks, from the front or the back: its number in the share, or -1. */
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

/* Find a task that is not done, from this thread's share on; if `again`, one that this thread may do again,
   and take it. Return -1 if there is none. */
static int find_task(Job *job, int again) {
  for (int i = 0, first, count; i < job->threads; i++) {
    Share *share = share_of(job, thread_after(job, i), &first, &count);
    for (int task = 0; task < count; task++) {
      job->state = share->states + task;
      uint8_t state = atomic_load(job->state);
      if (state == DONE) continue;
      if (!again || (state == ONCE && atomic_compare_exchange_strong(job->state, &state, AGAIN)))
        return first + task;
    }
  }
  return -1;
}

/* When tasks of others take too long. */
static double deadline_of(const Job *job) {
  double now = seconds_now();
  double patience = job->taken ? 2 * (now - job->start) / job->taken : PATIENCE_WITHOUT_TASKS;
  return now + (job->repeatable && patience > LEAST_PATIENCE ? patience : LEAST_PATIENCE);
}

/* Return the next task for this thread; -1 when all tasks of the job are done. */
static int next_task(Job *job) {
  for (int first, count; job->victim < job->threads; job->victim++) {
    Share *share = share_of(job, thread_after(job, job->victim), &first, &count);
    int task = take_task(share, count, job->victim > 0);
    if (task < 0) continue;
    job->taken++;
    job->state = share->states + task;
    return first + task;
  }
  while (find_task(job, 0) >= 0) {
    if (!job->deadline) job->deadline = deadline_of(job);
    if (seconds_now() > job->deadline) {
      int task = job->repeatable ? find_task(job, 1) : -1;
      if (task >= 0) return task;
      sched_yield(); /* the thread that this one waits for may need its core */
    }
    pause_briefly();
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
