/* MaxSim over packed documents: the query block stays in registers, each document row is read once, the maximum runs
   along. Plain C with the compilers' vector extensions and the stable ABI; the Python in maxsim.py says what it means.

   Memory safety: `score` checks every buffer's size against the shapes, and that each asked document lies within the
   vectors, before any kernel runs. The GIL is released while it runs, and only buffers held here are read. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_X86 1
#endif

#define BLOCK 32          /* query tokens that are scored together */
#define LINE 16           /* floats in a cache line */
#define CHUNK_BYTES 24576 /* of rows that are decoded, and read by all query blocks, before the next: most of the L1 */
#define AHEAD 6           /* rows whose centroids are asked for before they are needed */
#define MOST_BYTES 65536  /* dimensions of bytes whose products fit into 32 bits together */
#define MOST_K 8          /* similarities a query token may take from a document */
#if defined(__GNUC__)
#define NOINLINE __attribute__((noinline)) /* a tile needs all registers to itself */
#else
#define NOINLINE
#endif
/* unrolled early, else arrays of registers are arrays in memory */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 12")
#else
#define UNROLL
#endif
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

enum { NO_MEMORY = -1, NO_CENTROID = -2 };
enum { KIND_FLOAT32, KIND_FLOAT16, KIND_BFLOAT16, KIND_INT8, KIND_RESIDUAL, KINDS };
static const int BITS[KINDS] = {32, 16, 16, 8, 0}; /* a dimension takes; residual codes say themselves */

typedef struct {
    const float *queries;   /* [blocks][dim][BLOCK]; whole numbers from -127 to 127 for int8 */
    const float *weights;   /* [blocks][BLOCK], zero where a block is not full */
    const int64_t *owners;  /* [blocks] which query a block belongs to */
    const void *vectors;    /* [rows][dim] of a kind */
    const float *scales;    /* [rows] for int8, or nothing */
    const int64_t *starts;  /* [documents] the first row of each document */
    const int64_t *ends;    /* [documents] the row after its last */
    float *out;             /* [queries][documents], added to; or [documents][blocks][BLOCK] for maxima */
    const float *centroids; /* [centroid_count][dim] for residual codes */
    const int32_t *ids;     /* [rows] each row's centroid */
    const float *values;    /* [256][8 / bits] what the codes in a byte stand for */
    Py_ssize_t blocks, dim, documents, first, last, centroid_count;
    int kind, bits, unit; /* bits a dimension; unit: decoded rows are scaled to length one */
    int k;                /* similarities a query token takes; 0 writes each token's maximum instead of sums */
} job_t;

/* Running maxima of a block: the k best of each token, best first, and a sum that is NaN once one was not finite. */
#define STATE ((MOST_K + 1) * BLOCK)

static void reset(float *state)
{
    for (int b = 0; b < MOST_K * BLOCK; b++)
        state[b] = -INFINITY;
    for (int b = 0; b < BLOCK; b++)
        state[MOST_K * BLOCK + b] = 0.0f;
}

/* A finished document: its score is added, or its maxima are written; then the state is made ready for the next. */
static void finish(const job_t *job, Py_ssize_t block, Py_ssize_t document, float *state)
{
    const float *weights = job->weights + block * BLOCK, *poison = state + MOST_K * BLOCK;
    if (job->k == 0) {
        float *out = job->out + (document * job->blocks + block) * BLOCK;
        for (int b = 0; b < BLOCK; b++)
            out[b] = state[b] + poison[b];
    } else {
        float sum = 0.0f;
        for (int b = 0; b < BLOCK; b++) {
            if (weights[b] == 0.0f)
                continue;
            float best = state[b];
            for (int t = 1; t < job->k && state[t * BLOCK + b] > -INFINITY; t++)
                best += state[t * BLOCK + b];
            sum += best * weights[b] + poison[b];
        }
        job->out[job->owners[block] * job->documents + document] += sum;
    }
    reset(state);
}

static float half_to_float(uint16_t half)
{
#if defined(__aarch64__) && defined(__GNUC__)
    __fp16 native;
    memcpy(&native, &half, sizeof native);
    return (float)native;
#else
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu, bits;
    float value;
    if (exponent == 0) { /* zero or subnormal: mantissa * 2^-24 */
        value = (float)mantissa * 5.9604644775390625e-8f;
        memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    } else if (exponent == 31) {
        bits = sign | 0x7f800000u | (mantissa << 13);
    } else {
        bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
    }
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

/* the codes of a row are turned into floats, or into bytes where integers are multiplied, in one of these */
typedef union {
    float *floats;
    uint8_t *bytes;
    void *memory;
} chunk_t;

#ifdef HAVE_X86
#define ISA vnni
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,fma,f16c")))
#define LANES 16
#define ROWS 12
#define BYTES 1
#include "maxsim_tile.h"

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma,f16c")))
#define LANES 16
#define ROWS 12
#define BYTES 0
#include "maxsim_tile.h"

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 8
#define ROWS 2
#define BYTES 0
#include "maxsim_tile.h"
#endif

#define ISA baseline
#define TARGET
#define LANES 4
#ifdef __aarch64__ /* NEON has 32 registers of 4 floats */
#define ROWS 3
#else
#define ROWS 1
#endif
#define BYTES 0
#include "maxsim_tile.h"

typedef int (*run_t)(const job_t *);
static const struct {
    const char *name;
    run_t run;
} VERSIONS[] = {
#ifdef HAVE_X86
    {"avx512-vnni", run_vnni},
    {"avx512", run_avx512},
    {"avx2", run_avx2},
#endif
#ifdef __aarch64__
    {"neon", run_baseline},
#else
    {"baseline", run_baseline},
#endif
};
#define COUNT ((int)(sizeof VERSIONS / sizeof VERSIONS[0]))

static int supported(int version)
{
#ifdef HAVE_X86
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    if (version == 0)
        return avx512 && __builtin_cpu_supports("avx512vnni");
    if (version == 1)
        return avx512;
    if (version == 2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
    return version == COUNT - 1;
}

static PyObject *versions(PyObject *self, PyObject *unused)
{
    PyObject *names = PyList_New(0);
    for (int i = 0; names && i < COUNT; i++) {
        if (!supported(i))
            continue;
        PyObject *name = PyUnicode_FromString(VERSIONS[i].name);
        if (!name || PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

enum { QUERIES, WEIGHTS, OWNERS, VECTORS, STARTS, ENDS, OUT, SCALES, CENTROIDS, IDS, VALUES, BUFFERS };

/* What is wrong with the sizes of the buffers, or NULL. */
static const char *misfit(const job_t *job, const Py_buffer *b, Py_ssize_t rows, Py_ssize_t queries)
{
    const Py_ssize_t most = PY_SSIZE_T_MAX / 64;
    if (job->dim < 1 || job->dim > 1 << 20 || rows < 0 || rows > most / job->dim / 4)
        return "dim or rows out of range";
    if (job->blocks < 0 || job->blocks > most / (job->dim * BLOCK * 4) || queries < 0 || job->documents < 0 ||
        job->documents > most / 8)
        return "blocks, queries or documents out of range";
    Py_ssize_t columns = job->k ? queries : job->blocks * BLOCK; /* numbers a document in out */
    if (job->k < 0 || job->k > MOST_K)
        return "k out of range";
    if (columns && job->documents > most / 4 / columns)
        return "queries times documents out of range";
    if (b[QUERIES].len != job->blocks * job->dim * BLOCK * 4)
        return "queries do not have blocks * dim * 32 floats";
    if (b[WEIGHTS].len != job->blocks * BLOCK * 4)
        return "weights do not have blocks * 32 floats";
    if (b[OWNERS].len != job->blocks * 8)
        return "owners do not have one integer a block";
    if (job->kind == KIND_RESIDUAL && ((job->bits != 1 && job->bits != 2 && job->bits != 4) || job->dim * job->bits % 8))
        return "residual codes take 1, 2 or 4 bits and whole bytes a row";
    if (job->kind == KIND_INT8 && job->dim > MOST_BYTES)
        return "so many dimensions of bytes overflow their sum";
    if (b[VECTORS].len != rows * (job->dim * job->bits / 8))
        return "vectors do not have rows * dim items";
    if (job->scales && b[SCALES].len != rows * 4)
        return "scales do not have one float a row";
    if (job->kind == KIND_RESIDUAL) {
        if (job->centroid_count < 1 || job->centroid_count > INT32_MAX || job->centroid_count > most / (job->dim * 4) ||
            b[CENTROIDS].len != job->centroid_count * job->dim * 4)
            return "centroids do not have count * dim floats";
        if (b[IDS].len != rows * 4)
            return "ids do not have one integer a row";
        if (b[VALUES].len != 256 * (8 / job->bits) * 4)
            return "values do not have a float for each code in each byte";
    }
    if (b[STARTS].len != job->documents * 8 || b[ENDS].len != job->documents * 8)
        return "starts or ends do not have one integer a document";
    if (b[OUT].len != columns * job->documents * 4)
        return "out does not have a float for each score";
    if (job->first < 0 || job->first > job->last || job->last > job->documents)
        return "first and last lie outside the documents";
    for (Py_ssize_t i = 0; i < job->blocks; i++)
        if (job->owners[i] < 0 || job->owners[i] >= queries)
            return "an owner is no query";
    for (Py_ssize_t i = job->first; i < job->last; i++)
        if (job->starts[i] < 0 || job->starts[i] > job->ends[i] || job->ends[i] > rows)
            return "a document lies outside the vectors";
    return NULL;
}

static PyObject *score(PyObject *self, PyObject *arguments)
{
    PyObject *objects[BUFFERS];
    Py_buffer buffers[BUFFERS];
    Py_ssize_t rows, queries;
    job_t job;
    const char *name;
    int held = 0, done = 0, version = -1;
    if (!PyArg_ParseTuple(arguments, "sOOOOOOOOOOOiiiinnnnnnnn:score", &name, &objects[QUERIES], &objects[WEIGHTS],
                          &objects[OWNERS], &objects[VECTORS], &objects[STARTS], &objects[ENDS], &objects[OUT],
                          &objects[SCALES], &objects[CENTROIDS], &objects[IDS], &objects[VALUES], &job.kind, &job.bits,
                          &job.unit, &job.k, &job.blocks, &job.dim, &rows, &queries, &job.documents,
                          &job.centroid_count, &job.first, &job.last))
        return NULL;
    for (int i = 0; i < COUNT; i++)
        if (supported(i) && strcmp(name, VERSIONS[i].name) == 0)
            version = i;
    if (version < 0 || job.kind < 0 || job.kind >= KINDS) {
        PyErr_Format(PyExc_ValueError, "no version %s for storage kind %d", name, job.kind);
        return NULL;
    }
    if (BITS[job.kind])
        job.bits = BITS[job.kind];
    int scaled = objects[SCALES] != Py_None;
    for (int i = SCALES; i < BUFFERS; i++)
        if (objects[i] == Py_None) {
            if (i > SCALES && job.kind == KIND_RESIDUAL) {
                PyErr_SetString(PyExc_ValueError, "residual codes need centroids, ids and values");
                return NULL;
            }
            objects[i] = objects[WEIGHTS]; /* some buffer, not to be read */
        }
    for (; held < BUFFERS; held++)
        if (PyObject_GetBuffer(objects[held], &buffers[held], held == OUT ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
            goto release;
    job.queries = buffers[QUERIES].buf;
    job.weights = buffers[WEIGHTS].buf;
    job.owners = buffers[OWNERS].buf;
    job.vectors = buffers[VECTORS].buf;
    job.starts = buffers[STARTS].buf;
    job.ends = buffers[ENDS].buf;
    job.out = buffers[OUT].buf;
    job.scales = scaled ? buffers[SCALES].buf : NULL;
    job.centroids = buffers[CENTROIDS].buf;
    job.ids = buffers[IDS].buf;
    job.values = buffers[VALUES].buf;
    const char *wrong = misfit(&job, buffers, rows, queries);
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, wrong);
        goto release;
    }
    int failed = 0;
    Py_BEGIN_ALLOW_THREADS
    if (job.last > job.first)
        failed = VERSIONS[version].run(&job);
    Py_END_ALLOW_THREADS
    if (failed == NO_MEMORY)
        PyErr_NoMemory();
    else if (failed)
        PyErr_SetString(PyExc_ValueError, "a vector's centroid is not among the centroids: damaged codes");
    else
        done = 1;
release:
    while (held-- > 0)
        PyBuffer_Release(&buffers[held]);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"score", score, METH_VARARGS,
     "score(version, queries, weights, owners, vectors, starts, ends, out, scales, centroids, ids, values, kind, bits, "
     "unit, k, blocks, dim, rows, queries_count, documents, centroid_count, first, last): adds the scores of documents "
     "first to last to out, or writes their maxima where k is 0."},
    {"versions", versions, METH_NOARGS, "Names of the versions that this processor runs, fastest first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_maxsim", "Fused MaxSim kernels.", -1, METHODS};

PyMODINIT_FUNC PyInit__maxsim(void)
{
    return PyModule_Create(&MODULE);
}
