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

#define BLOCK 32  /* query tokens that are scored together */
#define LINE 16   /* floats in a cache line */
#define CHUNK 96 /* rows that are decoded, and read by all query blocks, before the next; whole tiles of any ROWS */
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#define BUFFERS 8 /* queries weights owners vectors starts out scales ends */

enum { KIND_FLOAT32, KIND_FLOAT16, KIND_INT8, KINDS };
static const Py_ssize_t ITEM[KINDS] = {4, 2, 1};

typedef struct {
    const float *queries;   /* [blocks][dim][BLOCK] */
    const float *weights;   /* [blocks][BLOCK], zero where a block is not full */
    const int64_t *owners;  /* [blocks] which query a block belongs to */
    const void *vectors;    /* [rows][dim] of a kind */
    const float *scales;    /* [rows] for int8, or nothing */
    const int64_t *starts;  /* [documents] the first row of each document */
    const int64_t *ends;    /* [documents] the row after its last */
    float *out;             /* [queries][documents], added to */
    Py_ssize_t blocks, dim, documents, first, last;
    int kind;
} job_t;

static void reset(float *state)
{
    for (int b = 0; b < BLOCK; b++) {
        state[b] = -INFINITY;
        state[BLOCK + b] = 0.0f;
    }
}

static float weighed(const float *best, const float *poison, const float *weights)
{
    float sum = 0.0f;
    for (int b = 0; b < BLOCK; b++)
        sum += weights[b] != 0.0f ? best[b] * weights[b] + poison[b] : 0.0f;
    return sum;
}

static float half_to_float(uint16_t half)
{
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
}

#ifdef HAVE_X86
#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma,f16c")))
#define LANES 16
#define ROWS 12
#define HALF_LANES 16
#include "maxsim_tile.h"
#undef ISA
#undef TARGET
#undef LANES
#undef ROWS
#undef HALF_LANES

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 8
#define ROWS 2
#define HALF_LANES 8
#include "maxsim_tile.h"
#undef ISA
#undef TARGET
#undef LANES
#undef ROWS
#undef HALF_LANES
#endif

#define ISA baseline
#define TARGET
#define LANES 4
#define ROWS 1
#define HALF_LANES 0
#include "maxsim_tile.h"

typedef int (*run_t)(const job_t *);
static const struct {
    const char *name;
    run_t run;
} VERSIONS[] = {
#ifdef HAVE_X86
    {"avx512", run_avx512},
    {"avx2", run_avx2},
#endif
    {"baseline", run_baseline},
};
#define COUNT ((int)(sizeof VERSIONS / sizeof VERSIONS[0]))

static int supported(int version)
{
#ifdef HAVE_X86
    if (version == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    if (version == 1)
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

/* What is wrong with the sizes of the buffers, or NULL. */
static const char *misfit(const job_t *job, const Py_buffer *b, Py_ssize_t rows, Py_ssize_t queries)
{
    const Py_ssize_t most = PY_SSIZE_T_MAX / 64;
    if (job->dim < 1 || job->dim > 1 << 20 || rows < 0 || rows > most / job->dim / 4)
        return "dim or rows out of range";
    if (job->blocks < 0 || job->blocks > most / (job->dim * BLOCK * 4) || queries < 0 || job->documents < 0)
        return "blocks, queries or documents out of range";
    if (queries && job->documents > most / 4 / queries)
        return "queries times documents out of range";
    if (b[0].len != job->blocks * job->dim * BLOCK * 4)
        return "queries do not have blocks * dim * 32 floats";
    if (b[1].len != job->blocks * BLOCK * 4)
        return "weights do not have blocks * 32 floats";
    if (b[2].len != job->blocks * 8)
        return "owners do not have one integer a block";
    if (b[3].len != rows * job->dim * ITEM[job->kind])
        return "vectors do not have rows * dim items";
    if (job->scales && b[6].len != rows * 4)
        return "scales do not have one float a row";
    if (b[4].len != job->documents * 8 || b[7].len != job->documents * 8)
        return "starts or ends do not have one integer a document";
    if (b[5].len != queries * job->documents * 4)
        return "out does not have queries * documents floats";
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
    if (!PyArg_ParseTuple(arguments, "sOOOOOOOOinnnnnnn:score", &name, &objects[0], &objects[1], &objects[2], &objects[3],
                          &objects[4], &objects[7], &objects[5], &objects[6], &job.kind, &job.blocks, &job.dim, &rows, &queries,
                          &job.documents, &job.first, &job.last))
        return NULL;
    for (int i = 0; i < COUNT; i++)
        if (supported(i) && strcmp(name, VERSIONS[i].name) == 0)
            version = i;
    if (version < 0 || job.kind < 0 || job.kind >= KINDS) {
        PyErr_Format(PyExc_ValueError, "no version %s for storage kind %d", name, job.kind);
        return NULL;
    }
    int scaled = objects[6] != Py_None;
    if (!scaled)
        objects[6] = objects[1]; /* some buffer, not to be read */
    for (; held < BUFFERS; held++)
        if (PyObject_GetBuffer(objects[held], &buffers[held], held == 5 ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
            goto release;
    job.queries = buffers[0].buf;
    job.weights = buffers[1].buf;
    job.owners = buffers[2].buf;
    job.vectors = buffers[3].buf;
    job.starts = buffers[4].buf;
    job.ends = buffers[7].buf;
    job.out = buffers[5].buf;
    job.scales = scaled ? buffers[6].buf : NULL;
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
    if (failed)
        PyErr_NoMemory();
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
     "score(version, queries, weights, owners, vectors, starts, ends, out, scales, kind, blocks, dim, rows, "
     "queries_count, documents, first, last): adds the scores of documents first to last to out."},
    {"versions", versions, METH_NOARGS, "Names of the versions that this processor runs, fastest first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_maxsim", "Fused MaxSim kernels.", -1, METHODS};

PyMODINIT_FUNC PyInit__maxsim(void)
{
    return PyModule_Create(&MODULE);
}
