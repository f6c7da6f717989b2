int tax_of(int price);

int tax_of(int price)
{
    return price * 119 / 100;
}
