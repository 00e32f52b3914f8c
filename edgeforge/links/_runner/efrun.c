/* The runner for devices without Python: what links/_worker.py does, for ONNX files, in one program.
 *
 *   efrun start JOB | race JOB | outputs JOB | count JOB      (_programs.py writes the job; paths are relative to here)
 *
 * It answers in lines of JSON on stdout, the same as the worker's. ONNX Runtime is loaded at run time and reached
 * through its table of functions, whose positions never change (the table is only ever appended to), so that neither
 * its headers nor a library of the device's architecture are needed to compile this. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_INPUTS = 16, MAX_SUBJECTS = 8, MAX_RANK = 8, FLOAT = 1, NAME = 200, API_VERSION = 17 };

typedef struct { /* OrtApi up to what is used; the gaps are functions that are not */
  void *gap0[2];
  const char *(*GetErrorMessage)(const void *status);                                     /* 2 */
  void *(*CreateEnv)(int severity, const char *id, void **env);                           /* 3 */
  void *gap4[3];
  void *(*CreateSession)(void *env, const char *path, void *options, void **session);     /* 7 */
  void *gap8[1];
  void *(*Run)(void *session, void *options, const char *const *names, void *const *values, size_t count,
               const char *const *output_names, size_t output_count, void **outputs);     /* 9 */
  void *(*CreateSessionOptions)(void **options);                                          /* 10 */
  void *gap11[13];
  void *(*SetIntraOpNumThreads)(void *options, int threads);                              /* 24 */
  void *(*SetInterOpNumThreads)(void *options, int threads);                              /* 25 */
  void *gap26[11];
  void *(*SessionGetOutputName)(void *session, size_t index, void *allocator, char **name); /* 37 */
  void *gap38[11];
  void *(*CreateTensorWithDataAsOrtValue)(void *memory, void *data, size_t bytes, const int64_t *shape, size_t rank,
                                          int type, void **value);                        /* 49 */
  void *gap50[1];
  void *(*GetTensorMutableData)(void *value, void **data);                                /* 51 */
  void *gap52[8];
  void *(*GetTensorElementType)(const void *info, int *type);                             /* 60 */
  void *(*GetDimensionsCount)(const void *info, size_t *rank);                            /* 61 */
  void *(*GetDimensions)(const void *info, int64_t *shape, size_t rank);                  /* 62 */
  void *gap63[1];
  void *(*GetTensorShapeElementCount)(const void *info, size_t *count);                   /* 64 */
  void *(*GetTensorTypeAndShape)(const void *value, void **info);                         /* 65 */
  void *gap66[3];
  void *(*CreateCpuMemoryInfo)(int allocator, int memory, void **info);                   /* 69 */
  void *gap70[8];
  void *(*GetAllocatorWithDefaultOptions)(void **allocator);                              /* 78 */
  void *gap79[17];
  void (*ReleaseValue)(void *value);                                                      /* 96 */
  void *gap97[2];
  void (*ReleaseTensorTypeAndShapeInfo)(void *info);                                      /* 99 */
} Api;
typedef struct {
  const Api *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} ApiBase;

typedef struct { char name[NAME]; int type; size_t bytes, rank; int64_t shape[MAX_RANK]; char *data; } Input;
typedef struct {
  char name[NAME], path[NAME];
  double sustained_s;
  void *session;
  const char *output;
  int next;        /* the sample that the next call takes */
  int64_t calls;   /* calls per latency sample */
} Subject;

static const Api *api;
static const char *version;
static void *environment, *memory;
static Input inputs[MAX_INPUTS];
static Subject subjects[MAX_SUBJECTS];
static int input_count, subject_count, feed_count, threads = 1, samples, warmup;
static double min_sample_ms = 5;
static uint64_t seed;
static int schedstat = -1;

/* -- answers */

static void text(const char *value) {
  putchar('"');
  for (; *value; value++) {
    unsigned char c = (unsigned char)*value;
    if (c == '"' || c == '\\') printf("\\%c", c);
    else if (c < 32) printf("\\u%04x", c);
    else putchar(c);
  }
  putchar('"');
}

static void sent(void) {
  if (fflush(stdout) != 0) exit(141); /* whoever asked is gone; 141 is what a shell says of SIGPIPE */
}

static void fail(const char *format, ...) {
  char message[2000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  printf("\n{\"error\": ");
  text(message);
  puts("}");
  sent();
  exit(3);
}

static void check(void *status, const char *doing) {
  if (status) fail("ONNX Runtime %s %s: %s", version, doing, api->GetErrorMessage(status));
}

/* -- the clock: wall-clock time less the time this thread was ready to run but another program held its core */

static int64_t wall_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t waited_ns(void) {
  char line[100] = {0};
  long long ran, waited;
  if (schedstat < 0 || pread(schedstat, line, sizeof line - 1, 0) <= 0) return 0;
  return sscanf(line, "%lld %lld", &ran, &waited) == 2 ? waited : 0;
}

static int64_t now_ns(void) { return wall_ns() - waited_ns(); }

static double processor_s(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static double peak_rss_mb(void) {
  char line[200];
  long kilobytes = 0;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %ld kB", &kilobytes) == 1) break;
  if (file) fclose(file);
  return kilobytes * 1024 / 1e6;
}

/* -- the job */

static char *content(const char *path, size_t bytes) {
  FILE *file = fopen(path, "rb");
  char *data = malloc(bytes ? bytes : 1);
  if (!data) fail("out of memory for %s", path);
  if (!file || fread(data, 1, bytes, file) != bytes) fail("%s is not whole", path);
  fclose(file);
  return data;
}

static void read_job(const char *path) {
  char word[NAME];
  FILE *file = fopen(path, "r");
  if (!file) fail("%s cannot be read", path);
  while (fscanf(file, "%199s", word) == 1) {
    int read = 1;
    if (!strcmp(word, "threads")) read = fscanf(file, "%d", &threads);
    else if (!strcmp(word, "samples")) read = fscanf(file, "%d", &samples);
    else if (!strcmp(word, "warmup")) read = fscanf(file, "%d", &warmup);
    else if (!strcmp(word, "min_sample_ms")) read = fscanf(file, "%lf", &min_sample_ms);
    else if (!strcmp(word, "seed")) read = fscanf(file, "%llu", (unsigned long long *)&seed);
    else if (!strcmp(word, "count")) read = fscanf(file, "%d", &feed_count);
    else if (!strcmp(word, "subject") && subject_count < MAX_SUBJECTS) {
      Subject *subject = &subjects[subject_count++];
      read = fscanf(file, "%199s %199s %lf", subject->name, subject->path, &subject->sustained_s) == 3;
    } else if (!strcmp(word, "input") && input_count < MAX_INPUTS) {
      Input *input = &inputs[input_count++];
      char name[NAME];
      read = fscanf(file, "%199s %199s %d %zu %zu", input->name, name, &input->type, &input->bytes, &input->rank) == 5;
      if (input->rank > MAX_RANK) fail("%s has too many axes", input->name);
      for (size_t axis = 0; axis < input->rank; axis++) read &= fscanf(file, "%lld", (long long *)&input->shape[axis]);
      input->data = content(name, input->bytes * feed_count);
    } else fail("%s: unknown word %s", path, word);
    if (read != 1) fail("%s: %s is not as it should be", path, word);
  }
  fclose(file);
}

/* -- the runtime */

static void load_runtime(void) {
  /* From 1.30 on, ONNX Runtime for Linux starts a thread that reports its use to Microsoft and leaves files at home. */
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);
  void *library = dlopen("libonnxruntime.so.1", RTLD_NOW);
  if (!library) fail("ONNX Runtime does not load on this device: %s", dlerror());
  const ApiBase *base = ((const ApiBase *(*)(void))dlsym(library, "OrtGetApiBase"))();
  version = base->GetVersionString();
  api = base->GetApi(API_VERSION);
  if (!api) fail("ONNX Runtime %s is older than 1.%d, which this runner needs", version, API_VERSION);
  check(api->CreateEnv(4, "edgeforge", &environment), "does not start"); /* 4: what goes wrong is answered, not logged */
  check(api->CreateCpuMemoryInfo(0, 0, &memory), "has no memory");
}

static void open_session(Subject *subject) {
  void *options, *allocator;
  char *output;
  check(api->CreateSessionOptions(&options), "has no options");
  check(api->SetIntraOpNumThreads(options, threads), "refuses the number of threads");
  check(api->SetInterOpNumThreads(options, 1), "refuses the number of threads");
  check(api->CreateSession(environment, subject->path, options, &subject->session), "cannot open it");
  check(api->GetAllocatorWithDefaultOptions(&allocator), "has no allocator");
  check(api->SessionGetOutputName(subject->session, 0, allocator, &output), "finds no output");
  subject->output = output;
}

static void *answer(Subject *subject) { /* of the next sample; to be released */
  const char *names[MAX_INPUTS];
  void *values[MAX_INPUTS], *output = NULL;
  for (int i = 0; i < input_count; i++) {
    Input *input = &inputs[i];
    names[i] = input->name;
    check(api->CreateTensorWithDataAsOrtValue(memory, input->data + subject->next * input->bytes, input->bytes,
                                              input->shape, input->rank, input->type, &values[i]),
          "takes no such input");
  }
  check(api->Run(subject->session, NULL, names, values, input_count, &subject->output, 1, &output), "cannot run it");
  for (int i = 0; i < input_count; i++) api->ReleaseValue(values[i]);
  subject->next = (subject->next + 1) % feed_count;
  return output;
}

/* -- start */

static void start(void) {
  Subject *subject = &subjects[0];
  int64_t begin = now_ns();
  open_session(subject);
  int64_t loaded = now_ns();
  api->ReleaseValue(answer(subject));
  int64_t answered = now_ns();
  printf("{\"start\": {\"load_ms\": %.6f, \"first_inference_ms\": %.6f, \"peak_rss_mb\": %.6f}, \"processor_s\": %.6f}\n",
         (loaded - begin) / 1e6, (answered - loaded) / 1e6, peak_rss_mb(), processor_s());
  sent();
}

/* -- race */

static int64_t batch(Subject *subject, int64_t calls) {
  int64_t begin = now_ns();
  while (calls-- > 0) api->ReleaseValue(answer(subject));
  return now_ns() - begin;
}

static void count_calls(Subject *subject) {
  double least = min_sample_ms * 1e6;
  int64_t elapsed, again;
  subject->calls = 1;
  while ((elapsed = batch(subject, subject->calls)) < least) subject->calls *= 2;
  for (int i = 0; i < 3; i++)
    if ((again = batch(subject, subject->calls)) < elapsed) elapsed = again;
  subject->calls = (int64_t)ceil(subject->calls * least / elapsed);
  if (subject->calls < 1) subject->calls = 1;
}

static double sample(Subject *subject, double least_ms) { /* mean time of a call (ms) */
  int64_t calls = subject->calls, more = calls / 8 > 1 ? calls / 8 : 1, elapsed = batch(subject, calls);
  for (; elapsed < least_ms * 1e6; calls += more) elapsed += batch(subject, more);
  return elapsed / (double)calls / 1e6;
}

static uint64_t chance(void) { /* splitmix64 (Steele et al., 2014) */
  uint64_t z = (seed += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

static void play_round(int number) {
  int order[MAX_SUBJECTS];
  double latency[MAX_SUBJECTS];
  for (int i = 0; i < subject_count; i++) {
    int other = (int)(chance() % (uint64_t)(i + 1));
    order[i] = order[other];
    order[other] = i;
  }
  for (int i = 0; i < subject_count; i++) {
    Subject *subject = &subjects[order[i]];
    api->ReleaseValue(answer(subject)); /* the model before left its own data in the caches */
    latency[order[i]] = sample(subject, min_sample_ms);
  }
  if (number < 0) return;
  printf("{\"round\": {");
  for (int i = 0; i < subject_count; i++) {
    printf(i ? ", " : "");
    text(subjects[i].name);
    printf(": %.9g", latency[i]);
  }
  puts("}}");
  sent();
}

static void sustain(Subject *subject) {
  double chunk_ms = fmax(min_sample_ms, subject->sustained_s * 1000 / 200);
  int64_t begin = wall_ns();
  for (double at = 0; at < subject->sustained_s; at = (wall_ns() - begin) / 1e9) {
    double latency = sample(subject, chunk_ms);
    printf("{\"sustained\": {\"subject\": ");
    text(subject->name);
    printf(", \"at_s\": %.6f, \"latency_ms\": %.9g}}\n", at, latency);
    sent();
  }
}

static void race(void) {
  int64_t begin = wall_ns(), waited = waited_ns();
  for (int i = 0; i < subject_count; i++) open_session(&subjects[i]);
  for (int i = 0; i < subject_count; i++) count_calls(&subjects[i]);
  for (int number = -warmup; number < samples; number++) play_round(number);
  for (int i = 0; i < subject_count; i++) sustain(&subjects[i]);
  printf("{\"end\": {\"calls_per_sample\": {");
  for (int i = 0; i < subject_count; i++) {
    printf(i ? ", " : "");
    text(subjects[i].name);
    printf(": %lld", (long long)subjects[i].calls);
  }
  printf("}, \"waiting_share\": ");
  if (schedstat < 0) printf("null");
  else printf("%.6f", (waited_ns() - waited) / (double)(wall_ns() - begin));
  printf("}, \"processor_s\": %.6f, \"runtime\": \"ONNX Runtime %s\"}\n", processor_s(), version);
  sent();
}

/* -- outputs: float32 rows of all samples, one after another, in outputs.bin */

static void outputs(void) {
  FILE *file = fopen("outputs.bin", "wb");
  int64_t shape[MAX_RANK];
  size_t rank = 0, count = 0, first = 0;
  open_session(&subjects[0]);
  for (int i = 0; i < feed_count; i++) {
    void *value = answer(&subjects[0]), *info, *data;
    int type;
    check(api->GetTensorTypeAndShape(value, &info), "hides its output");
    check(api->GetTensorElementType(info, &type), "hides its output");
    check(api->GetDimensionsCount(info, &rank), "hides its output");
    if (type != FLOAT || rank > MAX_RANK) fail("the output is no float32 tensor");
    check(api->GetDimensions(info, shape, rank), "hides its output");
    check(api->GetTensorShapeElementCount(info, &count), "hides its output");
    check(api->GetTensorMutableData(value, &data), "hides its output");
    if (i == 0) first = count;
    if (count != first) fail("the outputs of two samples differ in shape");
    if (!file || fwrite(data, sizeof(float), count, file) != count) fail("outputs.bin cannot be written: %m");
    api->ReleaseTensorTypeAndShapeInfo(info);
    api->ReleaseValue(value);
    if (i % 32 == 31) { printf("{\"done\": %d}\n", i + 1); sent(); }
  }
  if (!file || fclose(file) != 0) fail("outputs.bin cannot be written: %m");
  printf("{\"outputs\": {\"shape\": [%d", feed_count);
  for (size_t axis = 1; axis < rank; axis++) printf(", %lld", (long long)shape[axis]);
  puts("]}}");
  sent();
}

/* -- count: each sample between two marks, by which an emulator counts its instructions (_emulator/count.c) */

static void mark(int end) { syscall(SYS_getpriority, 0x4546, end); } /* refused by every kernel, and harmless */

static void count(void) {
  open_session(&subjects[0]);
  for (int i = 0; i < 5; i++) api->ReleaseValue(answer(&subjects[0])); /* the first calls lay out its memory */
  subjects[0].next = 0;
  for (int i = 0; i < feed_count; i++) {
    mark(0);
    api->ReleaseValue(answer(&subjects[0]));
    mark(1);
    printf("{\"done\": %d}\n", i + 1);
    sent();
  }
  printf("{\"end\": {\"calls\": %d}, \"runtime\": \"ONNX Runtime %s\"}\n", feed_count, version);
  sent();
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  schedstat = open("/proc/self/schedstat", O_RDONLY);
  read_job(argv[2]);
  load_runtime();
  if (!strcmp(argv[1], "start")) start();
  else if (!strcmp(argv[1], "race")) race();
  else if (!strcmp(argv[1], "outputs")) outputs();
  else if (!strcmp(argv[1], "count")) count();
  else return 2;
  return 0;
}
