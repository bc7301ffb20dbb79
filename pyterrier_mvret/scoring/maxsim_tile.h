/* One instruction set's version of the fused MaxSim kernel.

   Included by maxsim.c once for each instruction set, with these defined:
     ISA     suffix of the names
     TARGET  function attribute that allows the instructions
     LANES   floats a register holds
     ROWS    document rows that a tile takes: ROWS * BLOCK / LANES accumulators stay in registers
     BYTES   whether bytes can be multiplied and added four at a time (VNNI); elsewhere floats hold them exactly
   The similarities of a tile never leave the innermost cache; the matrix of all of them is never written. */

#define QUERY_VECTORS (BLOCK / LANES)
#define LANES_T JOIN(lanes_, ISA)
typedef float LANES_T __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

/* The larger, or the smaller, of each pair of lanes; where a is NaN, b. */
#if LANES == 16
#define LARGER(a, b) (LANES_T) _mm512_max_ps((__m512)(a), (__m512)(b))
#define SMALLER(a, b) (LANES_T) _mm512_min_ps((__m512)(a), (__m512)(b))
#elif LANES == 8
#define LARGER(a, b) (LANES_T) _mm256_max_ps((__m256)(a), (__m256)(b))
#define SMALLER(a, b) (LANES_T) _mm256_min_ps((__m256)(a), (__m256)(b))
#elif defined(HAVE_X86)
#define LARGER(a, b) (LANES_T) _mm_max_ps((__m128)(a), (__m128)(b))
#define SMALLER(a, b) (LANES_T) _mm_min_ps((__m128)(a), (__m128)(b))
#else
static inline LANES_T JOIN(larger_, ISA)(LANES_T a, LANES_T b)
{
    for (int lane = 0; lane < LANES; lane++)
        b[lane] = a[lane] > b[lane] ? a[lane] : b[lane];
    return b;
}
static inline LANES_T JOIN(smaller_, ISA)(LANES_T a, LANES_T b)
{
    for (int lane = 0; lane < LANES; lane++)
        b[lane] = a[lane] < b[lane] ? a[lane] : b[lane];
    return b;
}
#define LARGER(a, b) JOIN(larger_, ISA)(a, b)
#define SMALLER(a, b) JOIN(smaller_, ISA)(a, b)
#endif

/* Inner products of ROWS document rows with BLOCK query tokens; the query lies as [dim][BLOCK]. */
TARGET NOINLINE static void JOIN(tile_, ISA)(const float *restrict rows, Py_ssize_t dim, const float *restrict query,
                                    float (*restrict out)[BLOCK])
{
    LANES_T sums[ROWS][QUERY_VECTORS];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int v = 0; v < QUERY_VECTORS; v++)
            sums[r][v] = (LANES_T){0};
    for (Py_ssize_t d = 0; d < dim; d++) {
        if (d % LINE == 0) /* vectors come from memory: ask for the next tile while this one is computed */
            UNROLL
            for (int r = 0; r < ROWS; r++)
                __builtin_prefetch(rows + (ROWS + r) * dim + d);
        LANES_T q[QUERY_VECTORS];
        UNROLL
        for (int v = 0; v < QUERY_VECTORS; v++)
            q[v] = *(const LANES_T *)(query + d * BLOCK + v * LANES);
        UNROLL
        for (int r = 0; r < ROWS; r++)
            UNROLL
            for (int v = 0; v < QUERY_VECTORS; v++)
                sums[r][v] += q[v] * rows[r * dim + d];
    }
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int v = 0; v < QUERY_VECTORS; v++)
            *(LANES_T *)(out[r] + v * LANES) = sums[r][v];
}

#if BYTES
/* The same for bytes, in exact integers. The instruction multiplies unsigned with signed bytes, so document bytes come
   shifted by 128, and the sums start from what the shift adds, negated: offsets. Rows have quads * 4 bytes.
   As an instruction in place: with the intrinsic, GCC 12 copies every sum through memory. */
#define MULTIPLY_ADD(sum, four, q) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(four), "v"(q))

TARGET NOINLINE static void JOIN(tile_bytes_, ISA)(const uint8_t *restrict rows, Py_ssize_t quads,
                                                   const int8_t *restrict query, const int32_t *restrict offsets,
                                                   float (*restrict out)[BLOCK])
{
    __m512i sums[ROWS][QUERY_VECTORS], q[QUERY_VECTORS];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int v = 0; v < QUERY_VECTORS; v++)
            sums[r][v] = _mm512_loadu_si512(offsets + v * LANES);
    for (Py_ssize_t d = 0; d < quads; d++) {
        UNROLL
        for (int v = 0; v < QUERY_VECTORS; v++)
            q[v] = _mm512_loadu_si512(query + (d * BLOCK + v * LANES) * 4);
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            int32_t bytes;
            memcpy(&bytes, rows + (r * quads + d) * 4, sizeof bytes);
            __m512i four = _mm512_set1_epi32(bytes);
            UNROLL
            for (int v = 0; v < QUERY_VECTORS; v++)
                MULTIPLY_ADD(sums[r][v], four, q[v]);
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int v = 0; v < QUERY_VECTORS; v++)
            _mm512_storeu_ps(out[r] + v * LANES, _mm512_cvtepi32_ps(sums[r][v]));
}
#undef MULTIPLY_ADD

/* A block of whole-numbered floats [dim][BLOCK] as bytes [quads][BLOCK][4], and the offsets that tile_bytes wants. */
static void JOIN(pack_bytes_, ISA)(const float *block, Py_ssize_t dim, Py_ssize_t quads, int8_t *bytes, int32_t *offsets)
{
    memset(bytes, 0, (size_t)(quads * BLOCK * 4));
    memset(offsets, 0, BLOCK * sizeof *offsets);
    for (Py_ssize_t d = 0; d < dim; d++)
        for (int b = 0; b < BLOCK; b++) {
            float value = block[d * BLOCK + b];
            int8_t byte = (int8_t)(value > 127.0f ? 127.0f : value > -127.0f ? value : -127.0f); /* also for NaN */
            bytes[(d / 4 * BLOCK + b) * 4 + d % 4] = byte;
            offsets[b] -= 128 * byte;
        }
}
#endif

/* Takes some rows of one document into the running maxima of its block. */
TARGET static void JOIN(take_, ISA)(float (*restrict rows)[BLOCK], Py_ssize_t count, float *restrict state)
{
    for (int v = 0; v < QUERY_VECTORS; v++) {
        LANES_T best = *(LANES_T *)(state + v * LANES), poison = *(LANES_T *)(state + MOST_K * BLOCK + v * LANES);
        for (Py_ssize_t r = 0; r < count; r++) {
            LANES_T row = *(LANES_T *)(rows[r] + v * LANES);
            best = LARGER(row, best);
            poison += row * 0.0f;
        }
        *(LANES_T *)(state + v * LANES) = best;
        *(LANES_T *)(state + MOST_K * BLOCK + v * LANES) = poison;
    }
}

/* The same for the k best: each row is sorted in from the top, what it displaces goes on down. */
TARGET static void JOIN(take_best_, ISA)(float (*restrict rows)[BLOCK], Py_ssize_t count, float *restrict state, int k)
{
    for (int v = 0; v < QUERY_VECTORS; v++) {
        LANES_T *poison = (LANES_T *)(state + MOST_K * BLOCK + v * LANES);
        for (Py_ssize_t r = 0; r < count; r++) {
            LANES_T row = *(LANES_T *)(rows[r] + v * LANES);
            *poison += row * 0.0f;
            for (int t = 0; t < k; t++) {
                LANES_T *best = (LANES_T *)(state + t * BLOCK + v * LANES), old = *best;
                *best = LARGER(row, old);
                row = SMALLER(row, old);
            }
        }
    }
}

/* Halves as floats. */
TARGET static void JOIN(widen_, ISA)(const uint16_t *in, Py_ssize_t n, float *restrict out)
{
    Py_ssize_t i = 0;
#if LANES == 16
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(in + i))));
#elif LANES == 8
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(in + i))));
#endif
    for (; i < n; i++)
        out[i] = half_to_float(in[i]);
}

/* What a row's codes stand for, added to its centroid. */
TARGET static void JOIN(add_residual_, ISA)(const job_t *job, const uint8_t *codes, const float *restrict centroid,
                                            float *restrict out)
{
    Py_ssize_t each = 8 / job->bits, width = job->dim / each, i = 0;
#if LANES == 16
    /* sixteen codes at a time: shifted to their lanes, each picks its value from a register */
    int bits = job->bits;
    float by_code[16]; /* a lane's upper bits belong to the next code: the table repeats */
    for (int c = 0; c < 16; c++)
        by_code[c] = job->values[(c & ((1 << bits) - 1)) * each];
    __m512 table = _mm512_loadu_ps(by_code);
    __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i shifts = _mm512_and_si512(_mm512_mullo_epi32(lane, _mm512_set1_epi32(bits)), _mm512_set1_epi32(31));
    for (; i + 2 * bits <= width; i += 2 * bits) {
        uint16_t first;
        int32_t lower, upper;
        memcpy(&first, codes + i, sizeof first);
        lower = upper = first;
        if (bits > 1)
            memcpy(&lower, codes + i, sizeof lower);
        if (bits > 2)
            memcpy(&upper, codes + i + sizeof lower, sizeof upper);
        __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(lower), 0xff00, bits > 2 ? upper : lower);
        __m512 added = _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), table);
        _mm512_storeu_ps(out + i * each, _mm512_add_ps(added, _mm512_loadu_ps(centroid + i * each)));
    }
#endif
    for (; i < width; i++)
        for (Py_ssize_t j = 0; j < each; j++)
            out[i * each + j] = centroid[i * each + j] + job->values[codes[i] * each + j];
}

/* Scales a row to length one. */
TARGET static void JOIN(normalize_, ISA)(float *restrict row, Py_ssize_t dim)
{
    LANES_T parts = {0};
    float norm = 0.0f;
    Py_ssize_t d = 0;
    for (; d + LANES <= dim; d += LANES) {
        LANES_T part = *(LANES_T *)(row + d);
        parts += part * part;
    }
    for (; d < dim; d++)
        norm += row[d] * row[d];
    for (int lane = 0; lane < LANES; lane++)
        norm += parts[lane];
    float scale = norm > 0.0f ? 1.0f / sqrtf(norm) : 1.0f;
    for (d = 0; d < dim; d++)
        row[d] *= scale;
}

/* Centroids plus residuals, of length one where asked. Returns 0, or NO_CENTROID. */
TARGET static int JOIN(restore_, ISA)(const job_t *job, Py_ssize_t first, Py_ssize_t rows, float *restrict out)
{
    Py_ssize_t dim = job->dim, width = dim * job->bits / 8;
    const uint8_t *codes = (const uint8_t *)job->vectors + first * width;
    const int32_t *ids = job->ids + first;
    for (Py_ssize_t r = 0; r < rows; r++)
        if (ids[r] < 0 || ids[r] >= job->centroid_count)
            return NO_CENTROID;
    for (Py_ssize_t r = 0; r < rows; r++) {
        if (r + AHEAD < rows) /* centroids lie anywhere */
            for (Py_ssize_t d = 0; d < dim; d += LINE)
                __builtin_prefetch(job->centroids + ids[r + AHEAD] * dim + d);
        JOIN(add_residual_, ISA)(job, codes + r * width, job->centroids + ids[r] * dim, out + r * dim);
        if (job->unit)
            JOIN(normalize_, ISA)(out + r * dim, dim);
    }
    return 0;
}

/* Stored rows in the form that a tile reads: float32, or shifted bytes where those are multiplied. */
TARGET static int JOIN(decode_, ISA)(const job_t *job, Py_ssize_t first, Py_ssize_t rows, chunk_t out)
{
    Py_ssize_t dim = job->dim, n = rows * dim, start = first * dim;
    if (job->kind == KIND_FLOAT32) {
        memcpy(out.floats, (const float *)job->vectors + start, (size_t)n * sizeof(float));
    } else if (job->kind == KIND_FLOAT16) {
        JOIN(widen_, ISA)((const uint16_t *)job->vectors + start, n, out.floats);
    } else if (job->kind == KIND_BFLOAT16) {
        const uint16_t *in = (const uint16_t *)job->vectors + start;
        uint32_t *bits = out.memory;
        for (Py_ssize_t i = 0; i < n; i++)
            bits[i] = (uint32_t)in[i] << 16;
    } else if (job->kind == KIND_RESIDUAL) {
        return JOIN(restore_, ISA)(job, first, rows, out.floats);
    } else {
        const int8_t *restrict in = (const int8_t *)job->vectors + start;
#if BYTES
        uint8_t *restrict bytes = out.bytes;
        Py_ssize_t width = (dim + 3) / 4 * 4, pieces = width == dim ? 1 : rows; /* one long row where none is padded */
        for (Py_ssize_t r = 0; r < pieces; r++)
            for (Py_ssize_t d = 0; d < n / pieces; d++)
                bytes[r * width + d] = (uint8_t)in[r * dim + d] ^ 0x80;
#else
        for (Py_ssize_t i = 0; i < n; i++)
            out.floats[i] = (float)in[i];
#endif
    }
    return 0;
}

/* Scores documents first to last of a job with every query block. Returns 0, NO_MEMORY or NO_CENTROID. */
TARGET static int JOIN(run_, ISA)(const job_t *job)
{
    Py_ssize_t dim = job->dim, quads = (dim + 3) / 4, stored = dim * job->bits / 8;
    int bytes = BYTES && job->kind == KIND_INT8;
    Py_ssize_t width = bytes ? quads * 4 : dim * (Py_ssize_t)sizeof(float); /* of a decoded row */
    Py_ssize_t most = CHUNK_BYTES / width / ROWS * ROWS;
    most = most < ROWS ? ROWS : most;
    /* room for a chunk of decoded rows, rounded up to whole tiles, and for the running maxima of each block */
    chunk_t rows = {.memory = calloc((size_t)(most + ROWS), (size_t)width)};
    float *state = malloc((size_t)(job->blocks + 1) * STATE * sizeof(float));
    int8_t *packed = NULL;
    int32_t *offsets = NULL;
    int failed = rows.memory && state ? 0 : NO_MEMORY;
#if BYTES
    if (bytes) {
        packed = malloc((size_t)(job->blocks + 1) * (size_t)quads * BLOCK * 4);
        offsets = malloc((size_t)(job->blocks + 1) * BLOCK * sizeof *offsets);
        failed = packed && offsets ? failed : NO_MEMORY;
        for (Py_ssize_t b = 0; b < job->blocks && !failed; b++)
            JOIN(pack_bytes_, ISA)(job->queries + b * dim * BLOCK, dim, quads, packed + b * quads * BLOCK * 4,
                                   offsets + b * BLOCK);
    }
#endif
    for (Py_ssize_t b = 0; b < job->blocks && !failed; b++)
        reset(state + b * STATE);
    float similarities[ROWS][BLOCK] __attribute__((aligned(64)));
    for (Py_ssize_t document = job->first, after; document < job->last && !failed; document = after) {
        /* documents that lie one after the other are one run of rows: tiles cross their borders */
        for (after = document + 1; after < job->last && job->starts[after] == job->ends[after - 1];)
            after++;
        Py_ssize_t end = (Py_ssize_t)job->ends[after - 1];
        for (Py_ssize_t start = (Py_ssize_t)job->starts[document]; start < end && !failed;) {
            Py_ssize_t n = end - start < most ? end - start : most, whole = n - n % ROWS;
            const float *floats = rows.floats;
            if (job->kind == KIND_FLOAT32) {
                floats = (const float *)job->vectors + start * dim;
                /* rows after the last whole tile are copied: a tile must not read past the end of the vectors */
                failed = JOIN(decode_, ISA)(job, start + whole, n - whole, rows);
            } else {
                for (Py_ssize_t at = n * stored; at < 2 * n * stored; at += 64) /* what comes next */
                    __builtin_prefetch((const char *)job->vectors + start * stored + at);
                failed = JOIN(decode_, ISA)(job, start, n, rows);
            }
            Py_ssize_t at = document;
            for (Py_ssize_t b = 0; b < job->blocks && !failed; b++) {
                at = document;
                for (Py_ssize_t i = 0; i < n; i += ROWS) {
                    const float *tile = job->kind == KIND_FLOAT32 && i >= whole ? rows.floats : floats + i * dim;
                    Py_ssize_t m = n - i < ROWS ? n - i : ROWS;
#if BYTES
                    if (bytes)
                        JOIN(tile_bytes_, ISA)(rows.bytes + i * width, quads, packed + b * quads * BLOCK * 4,
                                               offsets + b * BLOCK, similarities);
                    else
#endif
                        JOIN(tile_, ISA)(tile, dim, job->queries + b * dim * BLOCK, similarities);
                    if (job->scales)
                        for (Py_ssize_t r = 0; r < m; r++)
                            for (int q = 0; q < BLOCK; q++)
                                similarities[r][q] *= job->scales[start + i + r];
                    for (Py_ssize_t r = 0, next; r < m; r = next) {
                        while (job->ends[at] <= start + i + r) /* documents without vectors */
                            at++;
                        next = job->ends[at] - start - i < m ? (Py_ssize_t)job->ends[at] - start - i : m;
                        if (job->k > 1)
                            JOIN(take_best_, ISA)(similarities + r, next - r, state + b * STATE, job->k);
                        else
                            JOIN(take_, ISA)(similarities + r, next - r, state + b * STATE);
                        if (job->ends[at] == start + i + next)
                            finish(job, b, at++, state + b * STATE);
                    }
                }
            }
            document = at;
            start += n;
        }
    }
    free(rows.memory);
    free(state);
    free(packed);
    free(offsets);
    return failed;
}

#undef QUERY_VECTORS
#undef LANES_T
#undef LARGER
#undef SMALLER
#undef ISA
#undef TARGET
#undef LANES
#undef ROWS
#undef BYTES
