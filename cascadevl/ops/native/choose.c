// The likeliest token of each row of scores.

// scores (rows, num); what is banned becomes -inf. chosen: the first of the greatest, or -1 where some are NaN or the
// greatest is infinite.
void choose(int64_t *chosen, float *scores, int rows, int num, const int64_t *banned, int num_banned) {
    for (int row = 0; row < rows; row++, scores += num) {
        for (int i = 0; i < num_banned; i++) scores[banned[i]] = -INFINITY;
        v8 most = all8(-INFINITY);
        i8 strange = {0};
        float top = -INFINITY;
        int i = 0, nan = 0;
        for (; i + 8 <= num; i += 8) {
            const v8 x = *(const v8 *)(scores + i);
            const i8 more = x > most;
            strange |= x != x;
            most = (v8)(((i8)x & more) | ((i8)most & ~more));
        }
        for (; i < num; i++) {
            nan |= scores[i] != scores[i];
            if (scores[i] > top) top = scores[i];
        }
        for (int lane = 0; lane < 8; lane++) {
            nan |= strange[lane];
            if (most[lane] > top) top = most[lane];
        }
        chosen[row] = -1;
        if (nan || isinf(top)) continue;
        for (i = 0; scores[i] != top; i++) {}
        chosen[row] = i;
    }
}
