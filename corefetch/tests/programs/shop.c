/* Crashes in total_of, called by checkout, while other threads wait. With an argument it calls abort there. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct order {
    int number;
    int *price;
};

int tax_of(int price);

static int total_of(struct order *order, int dies)
{
    if (dies)
        abort();
    return tax_of(*order->price); /* CRASH */
}

int checkout(struct order *order, int dies)
{
    return total_of(order, dies) * 2;
}

static void *wait_for_ever(void *unused)
{
    pause();
    return unused;
}

int main(int count, char **words)
{
    pthread_t thread;
    struct order order = {7, NULL};

    (void)words;
    for (int number = 0; number < 3; number++)
        pthread_create(&thread, NULL, wait_for_ever, NULL);
    usleep(100000);
    printf("%d\n", checkout(&order, count > 1));
    return 0;
}
