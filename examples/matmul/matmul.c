/* C = A B, single precision, in three levels of tiles; checked against a plain triple loop.

   The tiles are given when it is compiled: -DTILE_I=64 -DTILE_J=64 -DTILE_K=64 -DUNROLL=4. Prints
   the best of a few passes in seconds. A tile that does not divide N ends it with exit code 3. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define N 480
#define PRAGMA(text) _Pragma(#text)
#define UNROLLED(n) PRAGMA(GCC unroll n)

static float a[N][N], b[N][N], c[N][N];

static void multiply(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) c[i][j] = 0.0f;
    for (int i0 = 0; i0 < N; i0 += TILE_I)
        for (int k0 = 0; k0 < N; k0 += TILE_K)
            for (int j0 = 0; j0 < N; j0 += TILE_J)
                for (int i = i0; i < i0 + TILE_I; i++)
                    for (int k = k0; k < k0 + TILE_K; k++) {
                        const float x = a[i][k];
                        UNROLLED(UNROLL)
                        for (int j = j0; j < j0 + TILE_J; j++) c[i][j] += x * b[k][j];
                    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static int is_right(void) {
    for (int i = 0; i < N; i += 37)
        for (int j = 0; j < N; j += 41) {
            double sum = 0.0;
            for (int k = 0; k < N; k++) sum += (double)a[i][k] * b[k][j];
            if (fabs(sum - c[i][j]) > 1e-3 * (1.0 + fabs(sum))) return 0;
        }
    return 1;
}

int main(void) {
    if (N % TILE_I || N % TILE_J || N % TILE_K) {
        printf("a tile does not divide %d\n", N);
        return 3;
    }
    srand(1);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (float)rand() / RAND_MAX - 0.5f;
            b[i][j] = (float)rand() / RAND_MAX - 0.5f;
        }
    double best = 1e9;
    for (int pass = 0; pass < 5; pass++) {
        const double began = now();
        multiply();
        const double took = now() - began;
        if (took < best) best = took;
    }
    if (!is_right()) {
        printf("the product is wrong\n");
        return 1;
    }
    printf("time %.9f s\n", best);
    return 0;
}
