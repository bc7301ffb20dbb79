/* One instruction set's version of the fused MaxSim kernel.

   Included by maxsim.c once for each instruction set, with these defined:
     ISA     suffix of the names
     TARGET  function attribute that allows the instructions
     LANES   floats a register holds
     ROWS    document rows that a tile takes: ROWS * BLOCK / LANES accumulators stay in registers
   The similarities of a tile never leave the innermost cache; the matrix of all of them is never written. */

#define QUERY_VECTORS (BLOCK / LANES)
typedef float JOIN(lanes_, ISA) __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

/* Inner products of ROWS document rows with BLOCK query tokens; the query lies as [dim][BLOCK]. */
TARGET static void JOIN(tile_, ISA)(const float *restrict rows, Py_ssize_t dim, const float *restrict query,
                                    float (*restrict out)[BLOCK])
{
    JOIN(lanes_, ISA) sums[ROWS][QUERY_VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < QUERY_VECTORS; v++)
            sums[r][v] = (JOIN(lanes_, ISA)){0};
    for (Py_ssize_t d = 0; d < dim; d++) {
        if (d % LINE == 0) /* vectors come from memory: ask for the next tile while this one is computed */
            for (int r = 0; r < ROWS; r++)
                __builtin_prefetch(rows + (ROWS + r) * dim + d);
        JOIN(lanes_, ISA) q[QUERY_VECTORS];
        for (int v = 0; v < QUERY_VECTORS; v++)
            q[v] = *(const JOIN(lanes_, ISA) *)(query + d * BLOCK + v * LANES);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < QUERY_VECTORS; v++)
                sums[r][v] += q[v] * rows[r * dim + d];
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < QUERY_VECTORS; v++)
            *(JOIN(lanes_, ISA) *)(out[r] + v * LANES) = sums[r][v];
}

/* Takes one row's similarities into the running maxima; poison turns NaN when a similarity is not finite. */
TARGET static void JOIN(take_, ISA)(const float *restrict row, float *restrict best, float *restrict poison)
{
    for (int b = 0; b < BLOCK; b++) {
        best[b] = row[b] > best[b] ? row[b] : best[b];
        poison[b] += row[b] * 0.0f;
    }
}

/* Stored rows as float32. */
TARGET static void JOIN(decode_, ISA)(const job_t *job, Py_ssize_t first, Py_ssize_t rows, float *restrict out)
{
    Py_ssize_t n = rows * job->dim, start = first * job->dim;
    if (job->kind == KIND_FLOAT16) {
        const uint16_t *in = (const uint16_t *)job->vectors + start;
        Py_ssize_t i = 0;
#if HALF_LANES == 16
        for (; i + 16 <= n; i += 16)
            _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(in + i))));
#elif HALF_LANES == 8
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(in + i))));
#endif
        for (; i < n; i++)
            out[i] = half_to_float(in[i]);
    } else {
        const int8_t *in = (const int8_t *)job->vectors + start;
        for (Py_ssize_t r = 0; r < rows; r++) {
            float scale = job->scales ? job->scales[first + r] : 1.0f;
            for (Py_ssize_t d = 0; d < job->dim; d++)
                out[r * job->dim + d] = (float)in[r * job->dim + d] * scale;
        }
    }
}

/* Scores documents first to last of a job with every query block. Returns 0, or -1 where memory ran out. */
TARGET static int JOIN(run_, ISA)(const job_t *job)
{
    Py_ssize_t dim = job->dim;
    /* room for a chunk of decoded rows, rounded up to whole tiles, and for the running maxima of each block */
    float *rows = calloc((size_t)((CHUNK + ROWS) * dim), sizeof(float));
    float *state = malloc((size_t)job->blocks * 2 * BLOCK * sizeof(float));
    if (!rows || !state) {
        free(rows);
        free(state);
        return -1;
    }
    for (Py_ssize_t b = 0; b < job->blocks; b++)
        reset(state + b * 2 * BLOCK);
    float similarities[ROWS][BLOCK] __attribute__((aligned(64)));
    for (Py_ssize_t document = job->first, after; document < job->last; document = after) {
        /* documents that lie one after the other are one run of rows: tiles cross their borders */
        for (after = document + 1; after < job->last && job->starts[after] == job->ends[after - 1];)
            after++;
        Py_ssize_t end = (Py_ssize_t)job->ends[after - 1];
        for (Py_ssize_t start = (Py_ssize_t)job->starts[document]; start < end;) {
            Py_ssize_t n = end - start < CHUNK ? end - start : CHUNK, whole = n - n % ROWS;
            const float *chunk = rows;
            if (job->kind == KIND_FLOAT32) {
                chunk = (const float *)job->vectors + start * dim;
                /* rows after the last whole tile are copied: a tile must not read past the end of the vectors */
                memcpy(rows, chunk + whole * dim, (size_t)((n - whole) * dim) * sizeof(float));
            } else {
                JOIN(decode_, ISA)(job, start, n, rows);
            }
            Py_ssize_t at = document;
            for (Py_ssize_t b = 0; b < job->blocks; b++) {
                float *best = state + b * 2 * BLOCK, *poison = best + BLOCK;
                float *out = job->out + job->owners[b] * job->documents;
                at = document;
                for (Py_ssize_t i = 0; i < n; i += ROWS) {
                    const float *tile = job->kind == KIND_FLOAT32 && i >= whole ? rows : chunk + i * dim;
                    JOIN(tile_, ISA)(tile, dim, job->queries + b * dim * BLOCK, similarities);
                    Py_ssize_t m = n - i < ROWS ? n - i : ROWS;
                    for (Py_ssize_t r = 0; r < m; r++) {
                        while (job->ends[at] <= start + i + r) /* documents without vectors */
                            at++;
                        JOIN(take_, ISA)(similarities[r], best, poison);
                        if (job->ends[at] == start + i + r + 1) {
                            out[at++] += weighed(best, poison, job->weights + b * BLOCK);
                            reset(best);
                        }
                    }
                }
            }
            document = at;
            start += n;
        }
    }
    free(rows);
    free(state);
    return 0;
}

#undef QUERY_VECTORS
