/* Approximate MaxSim from product-quantised token vectors: a similarity is a sum of table entries, one a code. The table
   holds bytes whose sums stay below 256, so 32 query tokens are one register: a load and an addition a code.

   Memory safety: `approximate` and `fill` check every buffer's size against the shapes, and that each asked document lies
   within the rows, before anything is read; a code is a byte and every byte has an entry. The GIL is released. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#define BLOCK 32   /* query tokens an entry of the table holds */
#define CODES 256  /* entries a part of a vector has */

#if defined(__x86_64__) && defined(__GNUC__)
#define VERSIONS(...) __attribute__((target_clones(__VA_ARGS__)))
#define INLINE inline __attribute__((always_inline))
#else
#define VERSIONS(...)
#define INLINE inline
#endif

typedef uint8_t bytes_t __attribute__((vector_size(BLOCK), aligned(1), may_alias));

typedef struct {
    const uint8_t *table;  /* [blocks][parts][CODES][BLOCK] */
    const float *weights;  /* [blocks][BLOCK] */
    const uint8_t *codes;  /* [rows][parts] */
    const int64_t *starts; /* [documents] the first row of each document */
    const int64_t *ends;   /* [documents] the row after its last */
    float *out;            /* [documents], added to */
    Py_ssize_t blocks, parts, first, last;
} job_t;

/* One block's part of a document's score. With `parts` a constant, the compiler unrolls the sum of a row. */
static INLINE float score(const uint8_t *table, const float *weights, const uint8_t *codes, Py_ssize_t rows,
                          Py_ssize_t parts)
{
    bytes_t best = {0};
    for (Py_ssize_t r = 0; r < rows; r++, codes += parts) {
        bytes_t sum = {0};
        for (Py_ssize_t p = 0; p < parts; p++)
            sum += *(const bytes_t *)(table + (p * CODES + codes[p]) * BLOCK);
        bytes_t larger = (bytes_t)(sum > best);
        best = (sum & larger) | (best & ~larger);
    }
    float total = 0.0f;
    for (int t = 0; t < BLOCK; t++)
        total += (float)best[t] * weights[t];
    return total;
}

VERSIONS("avx2", "default") static void run(const job_t *job)
{
    Py_ssize_t parts = job->parts;
    for (Py_ssize_t b = 0; b < job->blocks; b++) {
        const uint8_t *table = job->table + b * parts * CODES * BLOCK;
        const float *weights = job->weights + b * BLOCK;
        for (Py_ssize_t d = job->first; d < job->last; d++) {
            const uint8_t *codes = job->codes + job->starts[d] * parts;
            Py_ssize_t rows = (Py_ssize_t)(job->ends[d] - job->starts[d]);
            job->out[d] += parts == 16 ? score(table, weights, codes, rows, 16) : score(table, weights, codes, rows, parts);
        }
    }
}

/* Similarities as bytes: of each token and part, the lowest becomes 0, and each of the token's steps above it one more. */
VERSIONS("avx2", "default")
static void fill_table(const float *products, const float *low, const float *step, Py_ssize_t parts, Py_ssize_t tokens,
                       uint8_t *table)
{
    for (Py_ssize_t first = 0; first < tokens; first += BLOCK) {
        Py_ssize_t n = tokens - first < BLOCK ? tokens - first : BLOCK;
        for (Py_ssize_t p = 0; p < parts; p++)
            for (Py_ssize_t c = 0; c < CODES; c++, table += BLOCK) {
                const float *row = products + (p * CODES + c) * tokens + first;
                for (Py_ssize_t t = 0; t < BLOCK; t++) {
                    float value = t < n ? (row[t] - low[p * tokens + first + t]) / step[first + t] + 0.5f : 0.0f;
                    value = value > 0.0f ? value : 0.0f; /* also for NaN */
                    table[t] = (uint8_t)(int32_t)(value < 255.0f ? value : 255.0f);
                }
            }
    }
}

static PyObject *approximate(PyObject *self, PyObject *arguments)
{
    enum { TABLE, WEIGHTS, ROWS, STARTS, ENDS, OUT, BUFFERS };
    PyObject *objects[BUFFERS];
    Py_buffer b[BUFFERS];
    Py_ssize_t rows, documents;
    job_t job;
    int held = 0, done = 0;
    if (!PyArg_ParseTuple(arguments, "OOOOOOnnnnnn:approximate", &objects[TABLE], &objects[WEIGHTS], &objects[ROWS],
                          &objects[STARTS], &objects[ENDS], &objects[OUT], &job.blocks, &job.parts, &rows, &documents,
                          &job.first, &job.last))
        return NULL;
    for (; held < BUFFERS; held++)
        if (PyObject_GetBuffer(objects[held], &b[held], held == OUT ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
            goto release;
    const Py_ssize_t most = PY_SSIZE_T_MAX / (CODES * BLOCK);
    const char *wrong = NULL;
    if (job.blocks < 0 || job.parts < 1 || rows < 0 || documents < 0 || job.blocks > most / job.parts ||
        rows > most / job.parts || documents > most)
        wrong = "blocks, parts, rows or documents out of range";
    else if (b[TABLE].len != job.blocks * job.parts * CODES * BLOCK)
        wrong = "table does not have blocks * parts * 256 * 32 bytes";
    else if (b[WEIGHTS].len != job.blocks * BLOCK * 4)
        wrong = "weights do not have blocks * 32 floats";
    else if (b[ROWS].len != rows * job.parts)
        wrong = "codes do not have rows * parts bytes";
    else if (b[STARTS].len != documents * 8 || b[ENDS].len != documents * 8)
        wrong = "starts or ends do not have one integer a document";
    else if (b[OUT].len != documents * 4)
        wrong = "out does not have one float a document";
    else if (job.first < 0 || job.first > job.last || job.last > documents)
        wrong = "first and last lie outside the documents";
    job.table = b[TABLE].buf;
    job.weights = b[WEIGHTS].buf;
    job.codes = b[ROWS].buf;
    job.starts = b[STARTS].buf;
    job.ends = b[ENDS].buf;
    job.out = b[OUT].buf;
    for (Py_ssize_t i = job.first; !wrong && i < job.last; i++)
        if (job.starts[i] < 0 || job.starts[i] > job.ends[i] || job.ends[i] > rows)
            wrong = "a document lies outside the rows";
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, wrong);
        goto release;
    }
    Py_BEGIN_ALLOW_THREADS
    run(&job);
    Py_END_ALLOW_THREADS
    done = 1;
release:
    while (held-- > 0)
        PyBuffer_Release(&b[held]);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *fill(PyObject *self, PyObject *arguments)
{
    enum { PRODUCTS, LOW, STEP, TABLE, BUFFERS };
    PyObject *objects[BUFFERS];
    Py_buffer b[BUFFERS];
    Py_ssize_t parts, tokens;
    int held = 0, done = 0;
    if (!PyArg_ParseTuple(arguments, "OOOOnn:fill", &objects[PRODUCTS], &objects[LOW], &objects[STEP], &objects[TABLE],
                          &parts, &tokens))
        return NULL;
    for (; held < BUFFERS; held++)
        if (PyObject_GetBuffer(objects[held], &b[held], held == TABLE ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
            goto release;
    const Py_ssize_t most = PY_SSIZE_T_MAX / (8 * CODES * BLOCK);
    if (parts < 1 || parts > most || tokens < 0 || tokens > most / parts || b[PRODUCTS].len != parts * CODES * tokens * 4 ||
        b[LOW].len != parts * tokens * 4 || b[STEP].len != tokens * 4 ||
        b[TABLE].len != (tokens + BLOCK - 1) / BLOCK * parts * CODES * BLOCK) {
        PyErr_SetString(PyExc_ValueError, "arrays do not fit the number of parts and tokens");
        goto release;
    }
    Py_BEGIN_ALLOW_THREADS
    fill_table(b[PRODUCTS].buf, b[LOW].buf, b[STEP].buf, parts, tokens, b[TABLE].buf);
    Py_END_ALLOW_THREADS
    done = 1;
release:
    while (held-- > 0)
        PyBuffer_Release(&b[held]);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"approximate", approximate, METH_VARARGS,
     "approximate(table, weights, codes, starts, ends, out, blocks, parts, rows, documents, first, last): adds the "
     "approximate scores of documents first to last to out."},
    {"fill", fill, METH_VARARGS, "fill(products, low, step, table, parts, tokens): fills the table from float products."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_quantized", "Approximate MaxSim.", -1, METHODS};

PyMODINIT_FUNC PyInit__quantized(void)
{
    return PyModule_Create(&MODULE);
}
