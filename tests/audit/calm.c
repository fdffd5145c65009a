/* What programs do with threads, signals, masks and processes. It says the same with every system call handed back and let go on. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

extern char **environ;
static int ready[2];
static volatile sig_atomic_t handled;
static sigjmp_buf back;

static void say(const char *what, long value)
{
    printf("%s %ld\n", what, value);
    fflush(stdout);
}

static void cleaned(void *what)
{
    say(what, 1);
}

/* Cancellation, in the C library's own waits. */
static void *sleeps(void *unused)
{
    pthread_cleanup_push(cleaned, "cancelled in nanosleep");
    write(ready[1], "x", 1);
    for (;;)
        nanosleep(&(struct timespec){1000, 0}, NULL);
    pthread_cleanup_pop(0);
    return unused;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

static void unlocked(void *what)
{
    pthread_mutex_unlock(&lock);
    say(what, 1);
}

static void *waits(void *unused)
{
    pthread_mutex_lock(&lock);
    pthread_cleanup_push(unlocked, "cancelled in pthread_cond_wait");
    write(ready[1], "x", 1);
    for (;;)
        pthread_cond_wait(&never, &lock);
    pthread_cleanup_pop(0);
    return unused;
}

static void *reads(void *pipe)
{
    pthread_cleanup_push(cleaned, "cancelled in read");
    write(ready[1], "x", 1);
    char byte;
    read(*(int *)pipe, &byte, 1);
    pthread_cleanup_pop(0);
    return NULL;
}

static void cancel(void *(*body)(void *), void *argument)
{
    pthread_t thread;
    char byte;
    void *result = NULL;
    pthread_create(&thread, NULL, body, argument);
    read(ready[0], &byte, 1);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    say("was cancelled", result == PTHREAD_CANCELED);
}

static void count(int signal)
{
    /* Calls of every kind from a handler. */
    handled++;
    getppid();
    syscall(SYS_gettid);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    poll(NULL, 0, 0);
    (void)signal;
}

static void jump(int signal)
{
    getppid();
    siglongjmp(back, signal);
}

static void *raises(void *unused)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    for (int n = 0; n < 10; n++)
        getppid();
    return unused;
}

static int c11(void *argument)
{
    getppid();
    return *(int *)argument + 1;
}

static int cloned(void *argument)
{
    *(volatile int *)argument = getppid() > 0 ? 5 : 6;
    return 9;
}

static ucontext_t main_context, other_context;

static void other(void)
{
    getppid();
    say("in another context", 1);
    swapcontext(&other_context, &main_context);
}

int main(void)
{
    pipe(ready);
    int idle[2];
    pipe(idle);
    cancel(sleeps, NULL);
    cancel(waits, NULL);
    cancel(reads, &idle[0]);

    /* Handlers, with full masks, in waits of all kinds. */
    struct sigaction action = {.sa_handler = count};
    sigfillset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    say("handled", handled);
    sigset_t all, none, before;
    sigfillset(&all);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &all, &before);
    raise(SIGUSR1);
    say("blocked", handled);
    sigset_t pending;
    sigpending(&pending);
    say("pending", sigismember(&pending, SIGUSR1));
    sigset_t but = all;
    sigdelset(&but, SIGUSR1);
    say("sigsuspend", sigsuspend(&but) == -1 && errno == EINTR);
    say("handled", handled);
    raise(SIGUSR1);
    say("ppoll", ppoll(NULL, 0, NULL, &but) == -1 && errno == EINTR);
    raise(SIGUSR1);
    say("pselect", pselect(0, NULL, NULL, NULL, NULL, &but) == -1 && errno == EINTR);
    say("handled", handled);
    sigprocmask(SIG_SETMASK, &before, NULL);

    /* Out of a handler, and on its own stack. */
    action.sa_handler = jump;
    sigaction(SIGUSR2, &action, NULL);
    int came = sigsetjmp(back, 1);
    if (came == 0)
        raise(SIGUSR2);
    say("jumped", came == SIGUSR2);
    stack_t own = {.ss_size = 65536, .ss_sp = malloc(65536)};
    sigaltstack(&own, NULL);
    action.sa_handler = count;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR2, &action, NULL);
    raise(SIGUSR2);
    say("handled", handled);

    /* SIGSYS belongs to the program where nobody else means it. */
    struct sigaction old;
    action.sa_flags = 0;
    say("sigaction of SIGSYS", sigaction(SIGSYS, &action, &old));
    say("was the default", old.sa_handler == SIG_DFL);
    raise(SIGSYS);
    say("handled", handled);
    sigaction(SIGSYS, NULL, &old);
    say("is ours", old.sa_handler == count);
    signal(SIGSYS, SIG_IGN);
    raise(SIGSYS);
    signal(SIGSYS, SIG_DFL);

    /* An interval timer that interrupts a restarted read. */
    handled = 0;
    struct sigaction alarmed = {.sa_handler = count, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &alarmed, NULL);
    if (fork() == 0) {
        struct timespec moment = {0, 1000000};
        for (int n = 0; n < 5; n++) {
            kill(getppid(), SIGALRM);
            nanosleep(&moment, NULL);
        }
        write(idle[1], "x", 1);
        _exit(0);
    }
    char byte = 0;
    say("read", read(idle[0], &byte, 1));
    int status;
    wait(&status);
    say("interrupted", handled > 0);

    /* Threads. */
    pthread_t threads[20];
    for (int n = 0; n < 20; n++)
        pthread_create(&threads[n], NULL, raises, NULL);
    for (int n = 0; n < 20; n++)
        pthread_join(threads[n], NULL);
    thrd_t thread;
    int result = 41;
    thrd_create(&thread, c11, &result);
    thrd_join(thread, &result);
    say("thrd_join", result);

    /* Processes. */
    pid_t child = vfork();
    if (child == 0) {
        dup2(1, 50);
        execl("/bin/sh", "sh", "-c", "exit 7", NULL);
        _exit(1);
    }
    waitpid(child, &status, 0);
    say("vfork", WEXITSTATUS(status));
    char *words[] = {"sh", "-c", "exit 8", NULL};
    posix_spawn(&child, "/bin/sh", NULL, NULL, words, environ);
    waitpid(child, &status, 0);
    say("posix_spawn", WEXITSTATUS(status));
    say("system", WEXITSTATUS(system("exit 9")));
    FILE *stream = popen("echo popen; exit 4", "r");
    char line[20] = "";
    fgets(line, sizeof line, stream);
    say(strtok(line, "\n"), WEXITSTATUS(pclose(stream)));
    char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile int seen = 0;
    child = clone(cloned, stack + 65536, CLONE_VM | SIGCHLD, (void *)&seen);
    waitpid(child, &status, 0);
    say("clone on a stack of its own", seen + WEXITSTATUS(status));
    child = clone(cloned, stack + 65536, SIGCHLD, (void *)&seen);
    waitpid(child, &status, 0);
    say("clone without shared memory", WEXITSTATUS(status));
    child = fork();
    if (child == 0) {
        raises(NULL);
        child = fork();
        if (child == 0)
            _exit(3);
        waitpid(child, &status, 0);
        _exit(WEXITSTATUS(status) + 1);
    }
    waitpid(child, &status, 0);
    say("fork of a fork", WEXITSTATUS(status));

    static char room[65536];
    getcontext(&other_context);
    other_context.uc_stack.ss_sp = room;
    other_context.uc_stack.ss_size = sizeof room;
    other_context.uc_link = &main_context;
    makecontext(&other_context, other, 0);
    swapcontext(&main_context, &other_context);
    say("back", 1);
    return 0;
}
